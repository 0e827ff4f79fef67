"""Dtypes of a model: casts it to that of its files, as ``from_pretrained`` does, and computes exactly in 16 bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from nas.modeling.quantized import Stored
from predictors.costs.stored_dtype import stored_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def cast_weights(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Casts the weights of a model in place; what is computed from its config, such as angles of positions, stays.

    Integers of quantized layers and their scales keep their dtypes.

    Args:
        model: With weights in float32 or in that dtype.
        dtype: Of its files.

    Returns:
        The model.
    """
    of = stored_dtype(model, dtype)
    with torch.no_grad():
        for name, tensor in _floats(model):
            tensor.data = tensor.data.to(of(name))
    return model


@contextmanager
def exact_sums(model: nn.Module) -> Iterator[None]:
    """Lets a model in 16 bits compute in float32 meanwhile, with memory for one more layer and what is in no layer.

    Its weights keep their values: outputs are those of a copy in float32, which would take four more bytes a weight.
    """
    layers = [layer for each in _outer_lists(model) for layer in each]
    of_layer = {layer: [tensor for _, tensor in _floats(layer)] for layer in layers}
    inside = {id(tensor) for tensors in of_layer.values() for tensor in tensors}
    outside = _Cast([tensor for _, tensor in _floats(model) if id(tensor) not in inside])
    casts = {layer: _Cast(tensors) for layer, tensors in of_layer.items()}
    handles = [layer.register_forward_pre_hook(lambda module, args: casts[module].enter()) for layer in layers]
    handles += [
        layer.register_forward_hook(lambda module, args, output: casts[module].leave(), always_call=True)
        for layer in layers
    ]
    outside.enter()
    try:
        yield
    finally:
        outside.leave()
        for handle in handles:
            handle.remove()


class _Cast:
    """Tensors of 16 bits that are in float32 for a while."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._halves = [tensor for tensor in tensors if tensor.dtype.itemsize == 2]
        self._before: list[torch.Tensor] = []

    def enter(self) -> None:
        """Casts them."""
        self._before = [tensor.data for tensor in self._halves]
        for tensor in self._halves:
            tensor.data = tensor.data.float()

    def leave(self) -> None:
        """Puts back what they were."""
        for tensor, before in zip(self._halves, self._before, strict=True):
            tensor.data = before


def _outer_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """Yields the lists of modules that are in no other one."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outer_lists(child)


def _floats(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields name and value of all floating-point weights, also of those that files lack as they are empty."""
    for path, module in model.named_modules():
        stays = {*module.stored} if isinstance(module, Stored) else module._non_persistent_buffers_set
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.is_floating_point() and name not in stays:
                yield f"{path}.{name}", tensor

"""Casts a model to the dtype of its files, as ``from_pretrained`` would load it in that dtype."""

from __future__ import annotations

from collections.abc import Iterator
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
        model: With weights in float32.
        dtype: Of its files.

    Returns:
        The model.
    """
    of = stored_dtype(model, dtype)
    with torch.no_grad():
        for name, tensor in _floats(model):
            tensor.data = tensor.data.to(of(name))
    return model


def _floats(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields name and value of all floating-point weights, also of those that files lack as they are empty."""
    for path, module in model.named_modules():
        stays = {*module.stored} if isinstance(module, Stored) else module._non_persistent_buffers_set
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.is_floating_point() and name not in stays:
                yield f"{path}.{name}", tensor

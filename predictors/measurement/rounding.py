"""Rounding: how far int8 products move the outputs of a model, and so how far a converted file may be from it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from predictors.measurement.halves import has_halves, in_float32, in_own_dtype
from search_spaces.dimensions.bits import ROUNDS_ACTIVATIONS

if TYPE_CHECKING:
    import torch
    from torch import nn

TOLERANCE = 1e-4
"""Largest allowed difference between an output of a converted file and of its model, where nothing is rounded."""

ROUNDINGS = 4.0
"""A file and its model round independently, and the largest of a few differences varies by chance."""

WEIGHT_STEPS, ACTIVATION_STEPS = 63, 255
"""Integers of the weights (per sign) and activations of an int8 file."""

Tensors = Mapping[str, "torch.Tensor"]


def largest_difference(found: Tensors, expected: Tensors) -> float:
    """Returns the largest absolute difference of an output.

    It is NaN if a value is, and infinite if an output is missing or has another shape; neither passes a check.
    """
    import torch

    if any(name not in found or found[name].shape != expected[name].shape for name in expected):
        return math.inf
    return float(torch.stack([(found[name] - expected[name]).abs().max() for name in expected]).max())


def allowed_difference(model: nn.Module, cases: Sequence[Mapping[str, Any]], *, int8: bool = False) -> float:
    """Returns how far the outputs of a converted file may be from those of its model.

    It is `TOLERANCE`, plus `ROUNDINGS` times the change of the outputs that rounding itself makes on the same inputs.

    Args:
        model: The model in evaluation mode.
        cases: Its inputs.
        int8: Whether all matrix products of the file are in int8, and not only those of int8 layers.
    """
    return TOLERANCE + ROUNDINGS * max((_rounding_error(model, inputs, int8) for inputs in cases), default=0.0)


def leaf_outputs(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Returns all floating-point outputs of a model by name, also those in nested structures."""
    import torch
    from transformers.exporters.utils import get_leaf_tensors

    with torch.inference_mode():
        leaves = get_leaf_tensors(dict(model(**copy.deepcopy(dict(inputs)))))
    return {name: tensor for name, tensor in leaves.items() if tensor.is_floating_point()}


def _rounding_error(model: nn.Module, inputs: Mapping[str, Any], int8: bool) -> float:
    """Returns how far 16 bits, or int8 layers, and with ``int8`` all others, move the outputs."""
    if has_halves(model):
        found = leaf_outputs(model, in_own_dtype(model, inputs))
        return largest_difference(found, leaf_outputs(in_float32(model), inputs))
    rounding = [module for module in model.modules() if getattr(module, "bits", "") in ROUNDS_ACTIVATIONS]
    error = 0.0
    if rounding:
        with _unrounded(rounding):
            exact = leaf_outputs(model, inputs)
        error += largest_difference(leaf_outputs(model, inputs), exact)
    if int8:
        exact = leaf_outputs(model, inputs)
        with _rounded(model):
            error += largest_difference(leaf_outputs(model, inputs), exact)
    return error


@contextmanager
def _unrounded(modules: Sequence[Any]) -> Iterator[None]:
    """Lets int8 layers compute with their inputs as they are."""
    before = [module.bits for module in modules]
    for module in modules:
        module.bits = "int8-weight"
    try:
        yield
    finally:
        for module, bits in zip(modules, before, strict=True):
            module.bits = bits


@contextmanager
def _rounded(model: nn.Module) -> Iterator[None]:
    """Rounds all matrices to `WEIGHT_STEPS`, and the inputs of layers that have one to `ACTIVATION_STEPS`."""
    import torch
    from torch import nn

    layers = [m for m in model.modules() if getattr(getattr(m, "weight", None), "ndim", 0) >= 2]
    handles = [m.register_forward_pre_hook(_round_input) for m in layers if not isinstance(m, nn.Embedding)]
    matrices = {parameter: parameter.data for parameter in model.parameters() if parameter.ndim >= 2}
    try:
        for parameter, data in matrices.items():
            step = (data.abs().max() / WEIGHT_STEPS).clamp(min=torch.finfo(data.dtype).tiny)
            parameter.data = (data / step).round() * step
        yield
    finally:
        for parameter, data in matrices.items():
            parameter.data = data
        for handle in handles:
            handle.remove()


def _round_input(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Rounds the first input of a layer within its range."""
    if not inputs or not inputs[0].is_floating_point():
        return inputs
    x = inputs[0]
    step = ((x.amax().clamp(min=0) - x.amin().clamp(max=0)) / ACTIVATION_STEPS).clamp(min=1e-12)
    return ((x / step).round() * step, *inputs[1:])

"""Four bits that are calibrated: integers for which a linear layer's outputs change least on its calibration data.

GPTQ (Frantar et al. 2022, arXiv 2210.17323): inputs are rounded one after another, and the error of each is made up
for by the inputs that are not rounded yet. Scales and offsets of groups stay as they are without calibration, and so
does the form of what is stored. Exports hold the result and do not need this file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nas.modeling.quantized import GROUP, group_scales, quantize, stored_groups
from search_spaces.dimensions.bits import CALIBRATED

DAMPING = 0.01
"""Part of the mean squared activation that is added to each input's, so that the moment can be inverted."""

BLOCK = 64
"""Inputs after which the error is passed on to all later ones at once."""


def quantize_on(weight: Tensor, bits: str, moment: Tensor | None) -> dict[str, Tensor]:
    """Quantizes a weight, in four bits on what is known of its inputs; see `nas.modeling.quantized.quantize`.

    Args:
        weight: (outputs, inputs).
        bits: Dtype.
        moment: Mean of x x^T over the layer's inputs x (inputs, inputs); None if it was not calibrated.
    """
    if moment is None or bits != CALIBRATED:
        return quantize(weight, bits)
    scales, offsets = group_scales(weight.float())
    return stored_groups(_integers(weight, moment, scales, offsets), scales, offsets)


def _integers(weight: Tensor, moment: Tensor, scales: Tensor, offsets: Tensor) -> Tensor:
    """Returns the integers (outputs, inputs) of a weight, on its device.

    They are computed in float64 on the CPU: the same weight in another layout has the same integers.
    """
    factor = _inverse_factor(moment.double().cpu())
    rows = weight.detach().double().cpu().T.clone(memory_format=torch.contiguous_format)  # (inputs, outputs)
    scale, offset = (of_groups.double().cpu().T.repeat_interleave(GROUP, 0) for of_groups in (scales, offsets))
    integers = torch.empty_like(rows)
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        errors = _round_block(rows[block], factor[block, block], scale[block], offset[block], integers[block])
        rows[start + BLOCK :] -= factor[block, start + BLOCK :].T @ errors
    return integers.T.to(weight.device)


def _inverse_factor(moment: Tensor) -> Tensor:
    """Returns the upper triangular factor of the inverse of a moment (inputs, inputs), damped."""
    damping = (DAMPING * moment.diagonal().mean()).clamp(min=torch.finfo(torch.float32).tiny)
    damped = moment + damping * torch.eye(len(moment), dtype=moment.dtype)
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def _round_block(rows: Tensor, factor: Tensor, scale: Tensor, offset: Tensor, integers: Tensor) -> Tensor:
    """Rounds a block of inputs (inputs, outputs) in turn, in place; returns their errors in units of the factor."""
    errors = torch.empty_like(rows)
    for i, row in enumerate(rows):
        integers[i] = ((row - offset[i]) / scale[i]).round().clamp(-8, 7)
        errors[i] = (row - integers[i] * scale[i] - offset[i]) / factor[i, i]
        rows[i + 1 :].addr_(factor[i, i + 1 :], errors[i], alpha=-1)
    return errors

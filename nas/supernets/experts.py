"""Experts of a layer: what the neurons of each give in a call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def expert_activations(
    module: Any, inputs: tuple[torch.Tensor, ...], mask: torch.Tensor | None
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """What the neurons of each expert give for the tokens that are routed to it.

    Args:
        module: All experts of a layer.
        inputs: Its arguments: hidden states (tokens, channels), experts of each token (tokens, experts a token), the
            router's weights of these.
        mask: Which tokens (samples, tokens) are no padding; None for all.

    Yields:
        The number of an expert, its neurons (its tokens, neurons), and the router's weights of these tokens, 0 for
        padding.
    """
    hidden, chosen, weights = inputs
    if mask is not None and mask.numel() == len(hidden):
        weights = weights * mask.to(hidden).view(-1, 1)
    for expert in chosen.unique().tolist():
        tokens, places = torch.where(chosen == expert)
        inner = module._apply_gate(torch.nn.functional.linear(hidden[tokens], module.gate_up_proj[expert]))
        yield expert, inner, weights[tokens, places]

"""Importance of the experts of each layer, and of their neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from nas.supernets.experts import expert_activations
from nas.supernets.supernet import Supernet
from nas.tasks.batches import model_inputs
from nas.tasks.evaluation import evaluation_mode, on_model

Batch = Mapping[str, torch.Tensor]


def expert_scores(supernet: Supernet, batches: Sequence[Batch]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Importance of each expert and its neurons by what they add to the outputs of their layer.

    Of an expert: the norm of its output times the router's weight, summed over the tokens that are routed to it (Lasby
    et al. 2025, arXiv 2510.13999, who take the mean: here an expert that is used rarely counts less). Of a neuron: its
    magnitude times the router's weight, summed likewise, times the norm of its column (Bercovich et al. 2024, arXiv
    2411.19146).

    Returns:
        For each parent layer, scores of experts (experts,) and neurons (experts, neurons), float64.
    """
    modules = [supernet.layer(layer).get_submodule(_experts_path(supernet, layer)) for layer in supernet.parent.layers]
    totals: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(layer: int, module: Any, inputs: Any) -> None:
        experts, neurons = _scores_of_call(module, inputs, mask)
        before = totals.get(layer, (torch.zeros(1), torch.zeros(1)))
        totals[layer] = before[0] + experts, before[1] + neurons

    handles = [module.register_forward_pre_hook(partial(add, number)) for number, module in enumerate(modules)]
    with evaluation_mode(supernet.model, in_float32=False):
        for batch in batches:
            mask = batch.get("attention_mask")
            supernet.model(**model_inputs(on_model(batch, supernet.model)))
    for handle in handles:
        handle.remove()
    return [totals[number] for number, _ in enumerate(modules)]


def _experts_path(supernet: Supernet, layer: int) -> str:
    """Path below a layer of the module with its experts."""
    table = supernet.family.stacks[supernet.layout.stack_of(layer)[0]].modules
    return next(path for path, axes in table.items() if axes[0] == "experts" and len(axes) == 3).rpartition(".")[0]


def _scores_of_call(module: Any, inputs: Any, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of experts and neurons in one call, summed in float64 on the CPU; see `expert_activations`."""
    down = module.down_proj
    experts, neurons = torch.zeros(len(down)).double(), torch.zeros(len(down), down.shape[2]).double()
    for expert, inner, weights in expert_activations(module, inputs, mask):
        weight, outputs = weights.double(), torch.nn.functional.linear(inner, down[expert])
        experts[expert] = (outputs.double().norm(dim=1) * weight).sum()
        neurons[expert] = (inner.double().abs() * weight[:, None]).sum(0) * down[expert].double().norm(dim=0)
    return experts, neurons

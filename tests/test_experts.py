"""Mixtures of experts: which experts and neurons stay, and what is computed without the others."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from toys import TOYS, logits

from nas.supernets.importance import order_by_importance
from nas.supernets.supernet import Supernet
from search_spaces import FAMILIES, InputError

MIXTURES = [name for name, family in FAMILIES.items() if "experts" in family.axes]


def keep_experts(kept: int, router: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What a router gives that does not know the experts after the first ones."""
    scores = torch.nn.functional.linear(hidden.reshape(-1, hidden.shape[-1]), router.weight)
    scores[:, kept:] = -torch.inf
    weights, experts = scores.float().softmax(-1).topk(min(router.top_k, kept), dim=-1)
    if getattr(router, "norm_topk_prob", True):
        weights = weights / weights.sum(-1, keepdim=True)
    return scores, weights, experts


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("kept", [1, 4])
def test_fewer_experts_equal_the_parent_whose_router_does_not_know_the_others(family: str, kept: int) -> None:
    toy = TOYS[family]
    parent = toy.model()
    supernet = Supernet(copy.deepcopy(parent))
    supernet.activate(supernet.parent.with_values(num_experts=(kept,) * 4))
    for layer in parent.model.layers:
        layer.mlp.gate.forward = partial(keep_experts, kept, layer.mlp.gate)
    inputs = toy.inputs()
    assert torch.allclose(logits(supernet.model, inputs), logits(parent, inputs), atol=1e-5)


@pytest.mark.parametrize("by", ["gradient", "activation"])
def test_experts_and_neurons_that_add_nothing_come_last(by: Any) -> None:
    """Each expert has another neuron that adds nothing, so that one order for all experts would fail."""
    toy = TOYS["mixtral"]
    model, inputs = toy.model(), toy.inputs()
    for layer in model.model.layers:
        layer.mlp.experts.down_proj.data[2] = 0
        for expert in range(6):
            layer.mlp.experts.down_proj.data[expert, :, 10 + expert] = 0
    supernet = Supernet(model)
    before = logits(model, inputs)
    order = order_by_importance(supernet, [toy.labelled() for _ in range(4)], by=by)
    assert torch.allclose(logits(model, inputs), before, atol=1e-5)
    assert all(experts[-1] == 2 for experts in order.units["experts"])
    for layer in model.model.layers:
        assert layer.mlp.experts.down_proj.data[:5, :, -1].abs().max() == 0
        assert layer.mlp.experts.down_proj.data[:5, :, -2].abs().max() > 0


def test_widths_of_experts_are_multiples_of_eight() -> None:
    layout = Supernet(TOYS["mixtral"].model()).layout
    with pytest.raises(InputError, match="must be a multiple of 8, but got 41; write, for example, 48"):
        layout.search_space({"intermediate_size": [41, 96]})
    with pytest.raises(InputError, match="does not vary in `llama`"):
        Supernet(TOYS["llama"].model()).layout.search_space({"num_experts": [2]})

"""Importance order: scores compared with references, and the permutation of the weights."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from toys import TOYS

from nas.recipe.schema import Recipe
from nas.supernets import importance
from nas.supernets.importance import (
    activation_scores,
    gradient_scores,
    hidden_scores,
    order_by_importance,
    unit_orders,
)
from nas.supernets.layer_importance import drop_layer, layer_order, mean_loss
from nas.supernets.load import calibration_set
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from search_spaces import InputError, SubnetConfig


@pytest.mark.parametrize("family", ["bert", "vit", "gpt2", "llama"])
def test_scores_are_the_gradient_of_a_mask(family: str) -> None:
    """The reference masks each head of the first layer by hand and asks autograd for the gradient."""
    supernet, batch = Supernet(TOYS[family].model()), TOYS[family].labelled()
    table = supernet.family.stacks[0].modules
    path = next(p for p, axes in table.items() if axes == ("hidden", "heads"))
    heads = max(supernet.parent.num_attention_heads)
    mask = torch.ones(heads, 1, requires_grad=True)

    def scale(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return ((args[0].unflatten(-1, (heads, -1)) * mask).flatten(-2),)

    handle = supernet.layer(0).get_submodule(path).register_forward_pre_hook(scale)
    supernet.model(**batch).loss.backward()
    handle.remove()
    assert mask.grad is not None
    scores = gradient_scores(supernet, [batch])["heads"][0]
    assert torch.allclose(scores, mask.grad.abs().view(-1).double(), atol=1e-6)


def test_one_gradient_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, batch, counts = Supernet(TOYS["llama"].model()), TOYS["llama"].labelled(), list[int]()
    score = importance._gradient_score

    def counted(supernet: Supernet, weight: torch.Tensor, axis: Any) -> torch.Tensor:
        counts.append(sum(p.grad is not None for p in supernet.model.parameters()))
        return score(supernet, weight, axis)

    monkeypatch.setattr(importance, "_gradient_score", counted)
    gradient_scores(supernet, [batch])
    assert set(counts) == {1} and len(counts) == 2 * len(supernet.parent.layers)


def test_units_are_sorted_by_descending_importance() -> None:
    supernet, batch = Supernet(TOYS["bert"].model()), TOYS["bert"].labelled()
    order_by_importance(supernet, [batch])
    for layers in gradient_scores(supernet, [batch]).values():
        for scores in layers:
            assert torch.allclose(scores, scores.sort(descending=True).values)


def test_channels_are_sorted_by_descending_activation() -> None:
    supernet, batch = Supernet(TOYS["llama"].model()), TOYS["llama"].labelled()
    for path, parameter in supernet.model.named_parameters():
        if "layernorm" in path:
            parameter.data.uniform_(0.1, 2.0)
    order = order_by_importance(supernet, [batch])
    scores = hidden_scores(supernet, [batch])
    assert torch.allclose(scores, scores.sort(descending=True).values)
    assert order.hidden != sorted(order.hidden)


def test_grouped_heads_move_with_their_group() -> None:
    supernet = Supernet(TOYS["llama"].model())
    scores = {"heads": [torch.tensor([1.0, 2, 9, 0, 3, 4, 0, 5], dtype=torch.float64)] * 4}
    orders = unit_orders(supernet, scores)
    assert orders["kv_heads"][0] == [1, 2, 3, 0]
    assert orders["heads"][0] == [2, 3, 5, 4, 7, 6, 1, 0]


def test_layer_order_removes_the_least_harmful_layer_first() -> None:
    supernet, batches = Supernet(TOYS["bert"].model()), [TOYS["bert"].labelled()]
    order = layer_order(supernet, batches)
    without = {i: mean_loss(supernet, drop_layer(supernet.parent, i), batches) for i in range(4)}
    assert order[-1] == min(without, key=lambda i: without[i])


def test_layers_are_ordered_in_twice_as_many_passes_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, tried = Supernet(TOYS["bert"].model()), list[SubnetConfig]()
    missed = {0: 4.0, 1: 1.0, 2: 3.0, 3: 2.0}

    def loss(_: Supernet, subnet: SubnetConfig, *__: Any) -> float:
        """What is missed of each dropped layer; without layer 1, layer 3 is missed more than layer 2."""
        tried.append(subnet)
        kept = set(subnet.layers)
        return sum(missed[i] for i in {0, 1, 2, 3} - kept) + 2.0 * (not kept & {1, 3})

    monkeypatch.setattr("nas.supernets.layer_importance.mean_loss", loss)
    assert layer_order(supernet, [], fewest=[1]) == (0, 3, 2, 1)
    assert len(tried) <= 1 + 2 * 4
    tried.clear()
    assert layer_order(supernet, [], fewest=[4]) == (0, 1, 2, 3) and not tried


def test_a_subnet_that_does_not_fit_is_refused() -> None:
    supernet = Supernet(TOYS["bert"].model())
    for layers, heads, ffn, hidden in (((0, 1), 5, 96, 48), ((0, 4), 4, 96, 48), ((0,), 4, 97, 48), ((0,), 4, 96, 49)):
        subnet = SubnetConfig.uniform(layers, num_attention_heads=heads, intermediate_size=ffn, hidden_size=hidden)
        for refuse in (supernet.activate, supernet.extract):
            with pytest.raises(InputError, match="must fit into its parent"):
                refuse(subnet)


def test_a_head_of_another_group_is_not_borrowed() -> None:
    """Four query heads share a key in this subnetwork; in the parent, two do."""
    supernet = Supernet(TOYS["llama"].model())
    with pytest.raises(InputError, match="must fit into its parent"):
        supernet.activate(SubnetConfig((0,), (8,), (96,), 48, num_key_value_heads=(2,)))
    space = supernet.layout.search_space({"num_attention_heads": [2, 4, 8], "num_key_value_heads": [1, 2, 4]})
    assert all(
        subnet.num_attention_heads[0] <= 2 * subnet.num_key_value_heads[0]
        for subnet in map(space.sample, [Random(0)] * 9)
    )


def test_an_unknown_family_is_refused() -> None:
    from transformers import CTRLConfig, CTRLLMHeadModel

    with pytest.raises(InputError, match=r"`ctrl` is not supported, and its modules .*CONTRIBUTING\.md"):
        Supernet(CTRLLMHeadModel(CTRLConfig(n_embd=8, n_layer=1, n_head=1, vocab_size=10, dff=8)))


def padded(batch: dict[str, torch.Tensor], more: int) -> dict[str, torch.Tensor]:
    """A batch with more padding behind its texts."""
    filling = {"labels": -100}
    return {
        name: value if value.ndim < 2 else torch.nn.functional.pad(value, (0, more), value=filling.get(name, 0))
        for name, value in batch.items()
    }


@pytest.mark.parametrize("scores", [hidden_scores, activation_scores, gradient_scores])
@pytest.mark.parametrize("family", ["bert", "llama", "t5", "bart"])
def test_importance_does_not_depend_on_padding(family: str, scores: Any) -> None:
    supernet, batch = Supernet(TOYS[family].model()), TOYS[family].labelled()
    found = [scores(supernet, [each]) for each in (batch, padded(batch, 18))]
    if isinstance(found[0], torch.Tensor):
        found = [{"hidden": [each]} for each in found]
    for axis, layers in found[0].items():
        for before, after in zip(layers, found[1][axis], strict=True):
            assert torch.allclose(after, before, rtol=1e-4, atol=1e-8), axis


def test_what_is_not_finite_is_no_order() -> None:
    toy = TOYS["bert"]
    supernet, batch = Supernet(toy.model("token-classification")), toy.labelled("token-classification")
    unlabelled = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    with pytest.raises(InputError, match="must be finite"):
        order_by_importance(supernet, [batch, unlabelled])
    with pytest.raises(InputError, match="losses on which layers are ordered must be finite"):
        layer_order(supernet, [batch, unlabelled])
    supernet.activate(supernet.parent)
    with torch.no_grad():
        supernet.model.bert.encoder.layer[0].output.dense.weight[0, 0] = float("nan")
    for by in ("gradient", "activation"):
        with pytest.raises(InputError, match="scores of importance must be finite"):
            order_by_importance(supernet, [batch], by=by)


def test_only_weights_that_read_scored_units_have_gradients() -> None:
    supernet, batch, trained = Supernet(TOYS["llama"].model()), TOYS["llama"].labelled(), set[str]()
    frozen = supernet.model.model.layers[3].mlp.up_proj.weight.requires_grad_(False)
    supernet.model.register_forward_hook(
        lambda model, *_: trained.update(name for name, p in model.named_parameters() if p.requires_grad)
    )
    gradient_scores(supernet, [batch])
    assert {name.split(".")[-2] for name in trained} == {"o_proj", "down_proj"}
    assert [p for p in supernet.model.parameters() if not p.requires_grad] == [frozen]


@pytest.mark.parametrize("frozen", ["layer.0", "layer."])
def test_frozen_weights_have_no_gradients_to_order_by(frozen: str) -> None:
    model = TOYS["bert"].model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    with pytest.raises(InputError, match="weights are frozen"):
        order_by_importance(Supernet(model), [TOYS["bert"].labelled()])
    order_by_importance(Supernet(model), [TOYS["bert"].labelled()], by="activation")


def test_long_texts_are_fewer_examples_of_a_calibration(text_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = TaskContext(Recipe.load(text_recipe))
    train = context.splits.train
    lengths = [len(ids) for ids in train["input_ids"]]
    assert len(calibration_set(context)) == len(train) > 40
    monkeypatch.setattr("nas.supernets.load.CALIBRATION_TOKENS", sum(lengths[:40]))
    assert len(calibration_set(context)) == 40
    monkeypatch.setattr("nas.supernets.load.CALIBRATION_TOKENS", 1)
    assert len(calibration_set(context)) == 32, "one batch"

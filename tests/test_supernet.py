"""Law 1: what is extracted equals what is active, in every family, scope and dimension; counts are exact."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from conftest import MODELS
from torch.utils.flop_counter import FlopCounterMode

from nas.elastic import ElasticLinear
from nas.importance import layer_order, mean_loss, order_by_importance, unit_scores, without_layer
from nas.supernet import Supernet
from predictors.analytic import AnalyticCosts
from search_spaces import FAMILIES, InputError, SearchSpace, SubnetConfig

CHOICES = {"num_hidden_layers": [1, 2, 4], "num_attention_heads": [1, 2, 3, 4], "intermediate_size": [16, 40, 96]}


def subnets(supernet: Supernet, scope: str) -> list[SubnetConfig]:
    space = SearchSpace(supernet.parent, **CHOICES, scope=scope, layer_order=[2, 0, 3, 1])  # type: ignore[arg-type]
    rng = Random(0)
    return [space.smallest, space.largest, *(space.sample(rng) for _ in range(4))]


def outputs(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs).logits


def labelled(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**inputs, "labels": torch.tensor([0, 1, 1])}


def test_every_family_has_a_toy_model() -> None:
    assert MODELS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("scope", ["uniform", "per-layer"])
@pytest.mark.parametrize("family", MODELS)
def test_extracted_equals_active(family: str, scope: str, attention: str) -> None:
    make, inputs = MODELS[family][0](attn_implementation=attention), MODELS[family][1]()
    supernet = Supernet(make)
    for subnet in subnets(supernet, scope):
        supernet.activate(subnet)
        extracted = supernet.extract(subnet)
        assert not any(isinstance(module, ElasticLinear) for module in extracted.modules())
        assert torch.allclose(outputs(extracted, inputs), outputs(supernet.model, inputs), atol=1e-6)


@pytest.mark.parametrize("family", MODELS)
def test_the_full_model_is_untouched_by_activation(family: str) -> None:
    make, inputs = MODELS[family]
    model, batch = make(), inputs()
    before, names = outputs(model, batch), list(model.state_dict())
    supernet = Supernet(model)
    for subnet in subnets(supernet, "per-layer"):
        supernet.activate(subnet)
    assert not torch.equal(outputs(model, batch), before)
    supernet.activate(supernet.parent)
    assert torch.equal(outputs(model, batch), before)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("family", MODELS)
def test_padding_does_not_change_a_subnetwork(family: str) -> None:
    if family in ("vit", "deit"):
        pytest.skip("images are not padded")
    make, inputs = MODELS[family]
    supernet, batch = Supernet(make()), inputs()
    length = int(batch["attention_mask"][1].sum())
    for subnet in subnets(supernet, "per-layer"):
        supernet.activate(subnet)
        alone = {name: tensor[1:2, :length] for name, tensor in batch.items()}
        assert torch.allclose(outputs(supernet.model, batch)[1], outputs(supernet.model, alone)[0], atol=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_importance_order_leaves_the_full_model_unchanged(family: str) -> None:
    make, inputs = MODELS[family]
    model, batch = make(), inputs()
    before = outputs(model, batch)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    order = order_by_importance(Supernet(model), [labelled(batch)])
    assert torch.allclose(outputs(model, batch), before, atol=1e-6)
    assert sorted(order.layers) == [0, 1, 2, 3]
    assert any(heads != sorted(heads) for heads in order.units["heads"])
    assert any(not torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", MODELS)
def test_scores_are_the_gradient_of_a_mask(family: str) -> None:
    """The reference masks each head of the first layer by hand and asks autograd for the gradient."""
    make, inputs = MODELS[family]
    supernet, batch = Supernet(make()), labelled(inputs())
    path = next(p for p, axes in supernet.family.modules.items() if axes == ("hidden", "heads"))
    mask = torch.ones(4, 1, requires_grad=True)

    def scale(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return ((args[0].unflatten(-1, (4, 12)) * mask).flatten(-2),)

    handle = supernet.layers.parent_layer(0).get_submodule(path).register_forward_pre_hook(scale)
    supernet.model(**batch).loss.backward()
    handle.remove()
    assert mask.grad is not None
    found = unit_scores(supernet, [batch])["heads"][0]
    assert torch.allclose(found, mask.grad.abs().view(-1).double(), atol=1e-6)


def test_units_are_sorted_by_falling_importance() -> None:
    make, inputs = MODELS["bert"]
    supernet, batch = Supernet(make()), labelled(inputs())
    order_by_importance(supernet, [batch])
    for layers in unit_scores(supernet, [batch]).values():
        for scores in layers:
            assert torch.allclose(scores, scores.sort(descending=True).values)


def test_layer_order_removes_the_least_harmful_layer_first() -> None:
    make, inputs = MODELS["bert"]
    supernet, batches = Supernet(make()), [labelled(inputs())]
    order = layer_order(supernet, batches)
    without = {i: mean_loss(supernet, without_layer(supernet.parent, i), batches) for i in range(4)}
    assert order[-1] == min(without, key=lambda i: without[i])


@pytest.mark.parametrize("scope", ["uniform", "per-layer"])
@pytest.mark.parametrize("family", MODELS)
def test_counts_are_exact(family: str, scope: str, tmp_path: Path) -> None:
    make, inputs = MODELS[family]
    supernet = Supernet(make())
    costs = AnalyticCosts.of(supernet.model)
    sample = {name: tensor[:1] for name, tensor in inputs().items()}
    for number, subnet in enumerate(subnets(supernet, scope)):
        model = supernet.extract(subnet)
        assert costs.num_parameters(subnet) == sum(p.numel() for p in model.parameters())
        model.save_pretrained(tmp_path / str(number))
        assert costs.size_bytes(subnet) == (tmp_path / str(number) / "model.safetensors").stat().st_size
        model.set_attn_implementation("eager")
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            model(**sample)
        assert flops.get_total_flops() == 2 * costs.macs(subnet, 12)


def test_a_subnet_that_does_not_fit_is_refused() -> None:
    supernet = Supernet(MODELS["bert"][0]())
    with pytest.raises(InputError, match="must fit into its parent"):
        supernet.activate(SubnetConfig.uniform((0, 1), num_attention_heads=5, intermediate_size=96))
    with pytest.raises(InputError, match="must fit into its parent"):
        supernet.extract(SubnetConfig.uniform((0, 4), num_attention_heads=4, intermediate_size=96))


def test_an_unknown_family_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(InputError, match="`gpt2` is not supported"):
        Supernet(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10)))

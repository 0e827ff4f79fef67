"""Relations: which states they are of, in every family, and what the loss on them is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOYS, Toy, bert, text_inputs
from test_supernet_training import gradients, still, trainer
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from nas.recipe.schema import Recipe
from nas.supernets.relation_distillation import (
    HiddenStateRecorder,
    attention_mask_of,
    relation_divergence,
    relation_heads,
    relation_loss,
)
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from search_spaces import FAMILIES, InputError, SubnetConfig


@pytest.fixture
def context(text_recipe: Path) -> TaskContext:
    return TaskContext(Recipe.load(text_recipe))


def narrowed(supernet: Supernet) -> SubnetConfig:
    """Without the second layer of each stack, and narrower, where the family can be."""
    scope = {"scope": "uniform"} if supernet.family.shared_layers else {}
    groups = supernet.layout.full_sizes[0]["kv_heads"] // 2
    narrow = {
        "num_attention_heads": [supernet.layout.full_sizes[0]["heads"] // 2],
        "intermediate_size": [48],
    }
    narrow |= {"num_key_value_heads": [groups]} if "kv_heads" in supernet.family.axes else {}
    depths = {"num_hidden_layers": [3], **({"num_decoder_layers": [3]} if len(supernet.stacks) > 1 else {})}
    space = supernet.layout.search_space({**narrow, **depths, **scope}, layer_order=order(supernet))
    return space.largest


def order(supernet: Supernet) -> list[int]:
    """The parent's layers, the second of each stack last."""
    layers = list(supernet.parent.layers)
    return layers if supernet.family.shared_layers else sorted(layers, key=lambda layer: layer % 4 == 1)


def recorded(supernet: Supernet, subnet: SubnetConfig, inputs: dict[str, Any], of: Any) -> dict[Any, torch.Tensor]:
    supernet.activate(supernet.parent)
    recorder = HiddenStateRecorder(supernet.model, supernet.layout, of)
    supernet.activate(subnet)
    with torch.no_grad():
        return recorder.run(supernet.model, inputs, subnet)[1]


# -- which states -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_the_states_of_kept_layers_are_those_of_the_network_alone(toy: Toy) -> None:
    supernet, inputs = Supernet(toy.model()), toy.inputs()
    subnet = narrowed(supernet)
    found = recorded(supernet, subnet, inputs, "hidden")
    assert [layer for layer, _ in found] == list(subnet.layers)
    with torch.no_grad():
        outputs = supernet.extract(subnet)(**inputs, output_hidden_states=True)
    names = ("hidden_states",) if len(supernet.stacks) == 1 else ("encoder_hidden_states", "decoder_hidden_states")
    for name, positions in zip(names, supernet.layout.kept_positions(subnet), strict=True):
        states = getattr(outputs, name)
        for place, position in enumerate(positions[:-1]):  # what a stack ends with may have gone through a norm
            assert torch.allclose(found[subnet.layers[position], "hidden"], states[place + 1], atol=1e-4)


ROTATED = (
    "modernbert",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma3_text",
    "phi3",
    "gpt_neox",
    "dinov3_vit",
)
SPIED = [name for name, toy in TOYS.items() if all(stack.attention_module for stack in FAMILIES[name].stacks)]


@pytest.mark.parametrize("name", SPIED)
def test_queries_keys_and_values_are_what_attention_is_called_with(name: str) -> None:
    called: list[list[torch.Tensor]] = []

    def spy(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        called.append([states.transpose(1, 2).flatten(2) for states in (query, key, value)])
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    supernet, inputs = Supernet(TOYS[name].model()), TOYS[name].inputs()
    subnet = narrowed(supernet)
    found = recorded(supernet, subnet, inputs, "attention")
    assert list(dict.fromkeys(layer for layer, _ in found)) == list(subnet.layers)
    AttentionInterface.register("spy", spy)
    AttentionMaskInterface.register("spy", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    alone = supernet.extract(subnet)
    alone.set_attn_implementation("spy")
    with torch.no_grad():
        alone(**inputs)
    for layer in subnet.layers:
        mine = [states for (of, _), states in found.items() if of == layer]
        (theirs,) = [each for each in called if each[2].shape == mine[2].shape and torch.allclose(each[2], mine[2])]
        if name not in ROTATED:
            scale = mine[0].std() / theirs[0].std()  # some scale their queries first
            assert torch.allclose(mine[0], theirs[0] * scale, atol=1e-5)
            assert torch.allclose(mine[1], theirs[1], atol=1e-5)


def test_the_projections_of_a_skipped_block_or_of_relative_positions_are_none_of_them() -> None:
    for name in ("bert", "deberta-v2"):
        supernet = Supernet(TOYS[name].model())
        subnet = SubnetConfig((0, 1), (0, 2), (96, 96), 48)
        found = recorded(supernet, subnet, text_inputs(), "attention")
        assert {layer for layer, _ in found} == {1} and len(found) == 3
        assert all(states.shape == (3, 12, 24) for states in found.values())


@pytest.mark.parametrize("family", ["bert", "vit", "llama"])
def test_the_last_states_of_a_narrowed_network_are_what_relations_are_of(family: str) -> None:
    supernet = Supernet(TOYS[family].model().eval())
    hidden = supernet.parent.hidden_size // 2
    subnet = supernet.layout.search_space({"hidden_size": [hidden]}).largest
    inputs = TOYS[family].inputs()
    (states,) = recorded(supernet, subnet, inputs, "last").values()
    with torch.no_grad():
        alone = supernet.extract(subnet).eval()(**inputs, output_hidden_states=True).hidden_states[-1]
    assert states.shape[-1] == hidden and torch.allclose(states, alone, atol=1e-5)


# -- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 3])
def test_relations_ignore_rotations_and_padding_and_see_the_rest(heads: int) -> None:
    torch.manual_seed(0)
    states, mask = torch.randn(2, 6, 12), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    rotation = torch.block_diag(*(torch.linalg.qr(torch.randn(12 // heads, 12 // heads))[0] for _ in range(heads)))
    assert relation_divergence(states @ rotation, states, mask, heads).abs() < 1e-5
    noisy = states.clone()
    noisy[1, 4:] = 7.0
    assert relation_divergence(noisy, states, mask, heads).abs() < 1e-6
    other, by_hand = torch.randn(2, 6, 6), []
    for k, tokens in enumerate((6, 4)):
        for slices in zip(other[k, :tokens].chunk(heads, -1), states[k, :tokens].chunk(heads, -1), strict=True):
            ours, theirs = ((s @ s.T / s.shape[-1] ** 0.5).softmax(-1) for s in slices)
            by_hand += (theirs * (theirs.log() - ours.log())).sum(-1).tolist()
    assert float(relation_divergence(other, states, mask, heads)) == pytest.approx(np.mean(by_hand), rel=1e-4)
    assert relation_divergence(other, states, None, heads) > 0


def test_as_many_relation_heads_as_both_can_be_split_into() -> None:
    widths = {(384, 384): 12, (128, 384): 8, (96, 384): 12, (40, 384): 8, (7, 384): 1}
    for (mine, theirs), heads in widths.items():
        assert relation_heads(torch.zeros(1, 1, mine), torch.zeros(1, 1, theirs), 12) == heads


def test_a_layer_is_compared_with_the_parent_s_layer_of_its_number() -> None:
    supernet, inputs = Supernet(bert()), text_inputs()
    teacher = recorded(supernet, supernet.parent, inputs, "hidden")
    student = {(2, "hidden"): teacher[2, "hidden"] @ torch.block_diag(*[torch.linalg.qr(torch.randn(12, 12))[0]] * 4)}
    assert relation_loss(student, teacher, inputs, supernet.layout).abs() < 1e-6
    assert relation_loss({(1, "hidden"): teacher[2, "hidden"]}, teacher, inputs, supernet.layout) > 1e-3
    assert relation_loss({}, teacher, inputs, supernet.layout) == 0


def test_the_tokens_of_a_decoder_are_those_with_labels() -> None:
    inputs = {"attention_mask": torch.tensor([[1, 1, 1, 0]]), "labels": torch.tensor([[5, 6, -100, -100]])}
    assert attention_mask_of(inputs, 0) is inputs["attention_mask"]
    assert attention_mask_of(inputs, 1).tolist() == [[True, True, False, False]]  # type: ignore[union-attr]


# -- in a step --------------------------------------------------------------------------------------------------------

BATCH = {"labels": torch.tensor([0, 1, 1])}


@pytest.mark.parametrize("of", ["last", "hidden", "attention"])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_step_adds_the_loss_on_relations_by_its_weight(
    of: Any, in_place: bool, context: TaskContext, tmp_path: Path
) -> None:
    batch, losses = {**text_inputs(), **BATCH}, []
    for weight in (0.0, 1.0, 2.0):
        changes = {"teacher": None} if in_place else {}
        made = trainer(context, tmp_path, relation_weight=weight, relation_source=of, **changes)
        losses.append(float(made.training_step(made.model, dict(batch))))
    assert losses[1] > losses[0] and losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3)


@pytest.mark.parametrize("of", ["hidden", "attention"])
def test_the_whole_network_relates_as_a_teacher_with_its_weights(
    of: Any, context: TaskContext, tmp_path: Path
) -> None:
    made = trainer(context, tmp_path, teacher=still(), relation_weight=1.0, relation_source=of)
    parent = made.supernet.parent
    inputs = {**text_inputs(), **BATCH}
    teacher_outputs = made._forward(made.teacher, inputs, parent)[1]
    student_outputs = made._forward(made.model, inputs, parent)[1]
    assert made._divergence(student_outputs, teacher_outputs, inputs).detach().abs() < 1e-5


@pytest.mark.parametrize("of", ["hidden", "attention"])
def test_activation_checkpointing_changes_no_gradient(of: Any, context: TaskContext, tmp_path: Path) -> None:
    batch, found = {**text_inputs(), **BATCH}, []
    for checkpoints in (False, True):
        made = trainer(context, tmp_path, relation_weight=1.0, relation_source=of)
        if checkpoints:
            made.model.gradient_checkpointing_enable({"use_reentrant": False})
        made.training_step(made.model, dict(batch))
        found.append(gradients(made.supernet.model))
    assert all(torch.allclose(gradient, found[1][name], atol=1e-6) for name, gradient in found[0].items())


def test_relations_of_layers_need_a_process_for_each_gpu(
    context: TaskContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(context, tmp_path)
    monkeypatch.setattr(type(made.args), "n_gpu", 2)
    with pytest.raises(InputError, match="accelerate launch"):
        made._attach_recorders("attention")

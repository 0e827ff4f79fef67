"""Relation distillation: the recorded states in every family, and the relation loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOYS, Toy, bert, text_inputs
from test_supernet_training import gradients, make_trainer, model_without_dropout
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
    narrow = {name: sizes for name, sizes in narrow.items() if name in supernet.family.dimensions}
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
def test_states_of_kept_layers_equal_those_of_the_extracted_model(toy: Toy) -> None:
    supernet, inputs = Supernet(toy.model()), toy.inputs()
    subnet = narrowed(supernet)
    states_by_layer = recorded(supernet, subnet, inputs, "hidden")
    assert [layer for layer, _ in states_by_layer] == list(subnet.layers)
    with torch.no_grad():
        outputs = supernet.extract(subnet)(**inputs, output_hidden_states=True)
    names = ("hidden_states",) if len(supernet.stacks) == 1 else ("encoder_hidden_states", "decoder_hidden_states")
    for name, positions in zip(names, supernet.layout.kept_positions(subnet), strict=True):
        states = getattr(outputs, name)
        for place, position in enumerate(positions[:-1]):  # the last states of a stack may have gone through a norm
            assert torch.allclose(states_by_layer[subnet.layers[position], "hidden"], states[place + 1], atol=1e-4)


ROTATED = (
    "modernbert",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma3_text",
    "phi3",
    "starcoder2",
    "stablelm",
    "cohere2",
    "olmo2",
    "gpt_neox",
    "dinov3_vit",
)
SPIED = [name for name, toy in TOYS.items() if all(stack.attention_module for stack in FAMILIES[name].stacks)]


@pytest.mark.parametrize("name", SPIED)
def test_queries_keys_and_values_are_the_inputs_of_attention(name: str) -> None:
    called: list[list[torch.Tensor]] = []

    def spy(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        called.append([states.transpose(1, 2).flatten(2) for states in (query, key, value)])
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    supernet, inputs = Supernet(TOYS[name].model()), TOYS[name].inputs()
    subnet = narrowed(supernet)
    states_by_layer = recorded(supernet, subnet, inputs, "attention")
    assert list(dict.fromkeys(layer for layer, _ in states_by_layer)) == list(subnet.layers)
    AttentionInterface.register("spy", spy)
    AttentionMaskInterface.register("spy", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    extracted = supernet.extract(subnet)
    extracted.set_attn_implementation("spy")
    with torch.no_grad():
        extracted(**inputs)
    for layer in subnet.layers:
        recorded_states = [states for (of, _), states in states_by_layer.items() if of == layer]
        (attention_inputs,) = [
            each
            for each in called
            if each[2].shape == recorded_states[2].shape and torch.allclose(each[2], recorded_states[2])
        ]
        if name not in ROTATED:
            scale = recorded_states[0].std() / attention_inputs[0].std()  # some scale their queries first
            assert torch.allclose(recorded_states[0], attention_inputs[0] * scale, atol=1e-5)
            assert torch.allclose(recorded_states[1], attention_inputs[1], atol=1e-5)


def test_skipped_blocks_and_relative_positions_are_not_recorded() -> None:
    for name in ("bert", "deberta-v2"):
        supernet = Supernet(TOYS[name].model())
        subnet = SubnetConfig((0, 1), (0, 2), (96, 96), 48)
        states_by_layer = recorded(supernet, subnet, text_inputs(), "attention")
        assert {layer for layer, _ in states_by_layer} == {1} and len(states_by_layer) == 3
        assert all(states.shape == (3, 12, 24) for states in states_by_layer.values())


@pytest.mark.parametrize("family", ["bert", "vit", "llama"])
def test_the_last_states_of_a_subnetwork_are_recorded(family: str) -> None:
    supernet = Supernet(TOYS[family].model().eval())
    hidden = supernet.parent.hidden_size // 2
    subnet = supernet.layout.search_space({"hidden_size": [hidden]}).largest
    inputs = TOYS[family].inputs()
    (states,) = recorded(supernet, subnet, inputs, "last").values()
    with torch.no_grad():
        expected = supernet.extract(subnet).eval()(**inputs, output_hidden_states=True).hidden_states[-1]
    assert states.shape[-1] == hidden and torch.allclose(states, expected, atol=1e-5)


# -- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 3])
def test_relations_ignore_rotations_and_padding(heads: int) -> None:
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
            student, teacher = ((s @ s.T / s.shape[-1] ** 0.5).softmax(-1) for s in slices)
            by_hand += (teacher * (teacher.log() - student.log())).sum(-1).tolist()
    assert float(relation_divergence(other, states, mask, heads)) == pytest.approx(np.mean(by_hand), rel=1e-4)
    assert relation_divergence(other, states, None, heads) > 0


def test_the_number_of_relation_heads_divides_both_widths() -> None:
    widths = {(384, 384): 12, (128, 384): 8, (96, 384): 12, (40, 384): 8, (7, 384): 1}
    for (student, teacher), heads in widths.items():
        assert relation_heads(torch.zeros(1, 1, student), torch.zeros(1, 1, teacher), 12) == heads


def test_a_layer_is_compared_with_the_same_layer_of_the_parent() -> None:
    supernet, inputs = Supernet(bert()), text_inputs()
    teacher = recorded(supernet, supernet.parent, inputs, "hidden")
    student = {(2, "hidden"): teacher[2, "hidden"] @ torch.block_diag(*[torch.linalg.qr(torch.randn(12, 12))[0]] * 4)}
    assert relation_loss(student, teacher, inputs, supernet.layout).abs() < 1e-6
    assert relation_loss({(1, "hidden"): teacher[2, "hidden"]}, teacher, inputs, supernet.layout) > 1e-3
    assert relation_loss({}, teacher, inputs, supernet.layout) == 0


def test_the_mask_of_a_decoder_follows_its_labels() -> None:
    inputs = {"attention_mask": torch.tensor([[1, 1, 1, 0]]), "labels": torch.tensor([[5, 6, -100, -100]])}
    assert attention_mask_of(inputs, 0) is inputs["attention_mask"]
    assert attention_mask_of(inputs, 1).tolist() == [[True, True, False, False]]  # type: ignore[union-attr]


# -- in a step --------------------------------------------------------------------------------------------------------

BATCH = {"labels": torch.tensor([0, 1, 1])}


@pytest.mark.parametrize("of", ["last", "hidden", "attention"])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_step_adds_the_weighted_relation_loss(of: Any, in_place: bool, context: TaskContext, tmp_path: Path) -> None:
    batch, losses = {**text_inputs(), **BATCH}, []
    for weight in (0.0, 1.0, 2.0):
        changes = {"teacher": None} if in_place else {}
        trainer = make_trainer(context, tmp_path, relation_weight=weight, relation_source=of, **changes)
        losses.append(float(trainer.training_step(trainer.model, dict(batch))))
    assert losses[1] > losses[0] and losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3)


@pytest.mark.parametrize("of", ["hidden", "attention"])
def test_the_parent_has_the_relations_of_a_teacher_with_its_weights(
    of: Any, context: TaskContext, tmp_path: Path
) -> None:
    trainer = make_trainer(context, tmp_path, teacher=model_without_dropout(), relation_weight=1.0, relation_source=of)
    parent = trainer.supernet.parent
    inputs = {**text_inputs(), **BATCH}
    teacher_outputs = trainer._forward(trainer.teacher, inputs, parent)[1]
    student_outputs = trainer._forward(trainer.model, inputs, parent)[1]
    assert trainer._divergence(student_outputs, teacher_outputs, inputs, parent).detach().abs() < 1e-5


@pytest.mark.parametrize("of", ["hidden", "attention"])
def test_activation_checkpointing_changes_no_gradient(of: Any, context: TaskContext, tmp_path: Path) -> None:
    batch, gradients_by_run = {**text_inputs(), **BATCH}, []
    for checkpoints in (False, True):
        trainer = make_trainer(context, tmp_path, relation_weight=1.0, relation_source=of)
        if checkpoints:
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        trainer.training_step(trainer.model, dict(batch))
        gradients_by_run.append(gradients(trainer.supernet.model))
    assert all(
        torch.allclose(gradient, gradients_by_run[1][name], atol=1e-6)
        for name, gradient in gradients_by_run[0].items()
    )


def test_relations_of_layers_need_one_process_per_gpu(
    context: TaskContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(context, tmp_path)
    monkeypatch.setattr(type(trainer.args), "n_gpu", 2)
    with pytest.raises(InputError, match="accelerate launch"):
        trainer._attach_recorders("attention")

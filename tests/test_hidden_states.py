"""Hidden states: recorded in every family, kept, compared with the parent's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_supernet_training import gradients, make_trainer, model_without_dropout
from toys import TOYS, Toy, bert, text_inputs

from nas.recipe.schema import Recipe
from nas.supernets.hidden_states import (
    HiddenStateRecorder,
    HiddenStates,
    StateMatching,
    attention_mask_of,
    hidden_state_loss,
    real_tokens,
    target_layers,
)
from nas.supernets.supernet import Supernet
from nas.tasks import kept_outputs
from nas.tasks.batches import model_inputs
from nas.tasks.context import TaskContext
from nas.tasks.kept_outputs import KeptStates
from search_spaces import SubnetConfig
from search_spaces.dimensions import depth_names


@pytest.fixture
def context(text_recipe: Path) -> TaskContext:
    return TaskContext(Recipe.load(text_recipe))


def narrowed(supernet: Supernet) -> SubnetConfig:
    """Without the second layer of each stack, and narrower, where the family can be."""
    scope = {"scope": "uniform"} if supernet.family.shared_layers else {}
    groups = supernet.layout.full_sizes[0]["kv_heads"] // 2
    narrow = {
        "num_attention_heads": [supernet.layout.full_sizes[-1]["heads"] // 2],
        "intermediate_size": [48],
    }
    narrow |= {"num_key_value_heads": [groups]} if "kv_heads" in supernet.family.axes else {}
    narrow = {name: sizes for name, sizes in narrow.items() if name in supernet.family.dimensions}
    depths = {name: [3] for name in depth_names(len(supernet.stacks))}
    space = supernet.layout.search_space({**narrow, **depths, **scope}, layer_order=order(supernet))
    return space.largest


def order(supernet: Supernet) -> list[int]:
    """The parent's layers, the second of each stack last."""
    layers = list(supernet.parent.layers)
    return layers if supernet.family.shared_layers else sorted(layers, key=lambda layer: layer % 4 == 1)


def recorded(supernet: Supernet, subnet: SubnetConfig, inputs: dict[str, Any]) -> HiddenStates:
    supernet.activate(supernet.parent)
    recorder = HiddenStateRecorder(supernet.model, supernet.layout)
    supernet.activate(subnet)
    with torch.no_grad():
        return recorder.run(lambda: supernet.model(**model_inputs(inputs)), inputs)[1]


# -- which states -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_states_of_kept_layers_equal_those_of_the_extracted_model(toy: Toy) -> None:
    supernet, inputs = Supernet(toy.model()), toy.inputs()
    batch = {**inputs, "labels": inputs.get("decoder_input_ids", torch.zeros(3, 1))}
    subnet = narrowed(supernet)
    in_supernet, extracted = recorded(supernet, subnet, batch), supernet.extract(subnet)
    assert sorted(in_supernet) == list(subnet.layers)
    recorder = HiddenStateRecorder(extracted, supernet.layout, subnet.layers)
    with torch.no_grad():
        outputs, alone = recorder.run(lambda: extracted(**inputs, output_hidden_states=True), batch)
    for layer in subnet.layers:
        assert torch.allclose(torch.cat(in_supernet[layer]), torch.cat(alone[layer]), atol=1e-4)
    if supernet.family.stages is not None or toy.model_type.startswith("rt_detr"):
        return  # its outputs are those of stages, or maps between convolutions
    names = ("hidden_states",) if len(supernet.stacks) == 1 else ("encoder_hidden_states", "decoder_hidden_states")
    for stack, (name, positions) in enumerate(zip(names, supernet.layout.kept_positions(subnet), strict=True)):
        states, mask = getattr(outputs, name), attention_mask_of(batch, stack)
        for place, position in enumerate(positions):
            layer = subnet.layers[position]
            if place < len(positions) - 1:  # the last states of a stack may have gone through a norm
                expected = torch.cat(real_tokens(states[place + 1], mask))
                assert torch.allclose(torch.cat(alone[layer]), expected, atol=1e-4)


def test_padding_is_not_recorded() -> None:
    supernet, inputs = Supernet(bert()), text_inputs()
    states = recorded(supernet, supernet.parent, inputs)
    assert [len(each) for each in states[0]] == [12, 7, 9]
    longer = {name: torch.nn.functional.pad(each, (0, 4)) for name, each in inputs.items()}
    padded = recorded(supernet, supernet.parent, longer)
    assert torch.allclose(torch.cat(states[3]), torch.cat(padded[3]), atol=1e-5)


def test_the_mask_of_a_decoder_follows_its_labels() -> None:
    inputs = {"attention_mask": torch.tensor([[1, 1, 1, 0]]), "labels": torch.tensor([[5, 6, -100, -100]])}
    assert attention_mask_of(inputs, 0) is inputs["attention_mask"]
    assert attention_mask_of(inputs, 1).tolist() == [[True, True, False, False]]  # type: ignore[union-attr]


# -- the loss ---------------------------------------------------------------------------------------------------------


def test_a_layer_learns_from_its_own_and_the_last_from_the_parents_last() -> None:
    assert target_layers(Supernet(bert()).layout, [0, 2]) == {0: 0, 2: 3}
    assert target_layers(Supernet(TOYS["t5"].model()).layout, [1, 4, 6]) == {1: 3, 4: 4, 6: 7}


def test_the_loss_is_the_squared_difference_relative_to_the_variance() -> None:
    layout = Supernet(bert()).layout
    torch.manual_seed(0)
    teacher = {layer: [torch.randn(5, 48), 3 * torch.randn(2, 48)] for layer in range(4)}
    assert hidden_state_loss({1: teacher[1], 3: teacher[3]}, teacher, layout) == 0
    means = {layer: [torch.cat(each).mean(0).expand_as(part) for part in each] for layer, each in teacher.items()}
    assert float(hidden_state_loss({3: means[3]}, teacher, layout)) == pytest.approx(1.0, rel=1e-5)
    half = {1: teacher[1], 3: means[3]}
    assert float(hidden_state_loss(half, teacher, layout)) == pytest.approx(0.5, rel=1e-5)
    narrow = {3: [each[:, :24] for each in teacher[3]]}
    assert hidden_state_loss(narrow, teacher, layout) == 0


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_states_are_kept_by_example(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, states = KeptStates(), {2: [torch.randn(n, 4) for n in (3, 1, 2)]}
    kept.put(torch.tensor([7, 0, 4]), states)
    found = kept.get(torch.tensor([4, 7]))
    assert found is not None and [len(each) for each in found[2]] == [2, 3] and kept.n_known == 3
    assert torch.equal(found[2][0], states[2][2].bfloat16()) and kept.get(torch.tensor([4, 5])) is None
    monkeypatch.setattr(kept_outputs, "MAX_STATE_BYTES", 6 * 4 * 2)
    kept.put(torch.tensor([5]), {2: [torch.randn(1, 4)]})
    assert kept.n_known == 3


def test_states_of_several_texts_of_an_example_stay_together() -> None:
    kept, states = KeptStates(), {0: [torch.full((n, 4), float(n)) for n in (1, 2, 3, 4)]}
    kept.put(torch.tensor([8, 5]), states)
    found = kept.get(torch.tensor([5, 8]))
    assert found is not None and [len(each) for each in found[0]] == [3, 4, 1, 2]


# -- in a step --------------------------------------------------------------------------------------------------------

BATCH = {"labels": torch.tensor([0, 1, 1])}


def matching(weight: float = 1.0) -> StateMatching:
    supernet = Supernet(model_without_dropout())
    return StateMatching(weight, supernet.layout, [supernet.parent], KeptStates())


def test_a_step_adds_the_weighted_loss(context: TaskContext, tmp_path: Path) -> None:
    batch, losses = {**text_inputs(), **BATCH}, []
    for weight in (0.0, 1.0, 2.0):
        trainer = make_trainer(context, tmp_path, states=matching(weight))
        losses.append(float(trainer.training_step(trainer.model, dict(batch))))
    assert losses[1] > losses[0] and losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3)


def test_the_parent_has_the_states_of_a_teacher_with_its_weights(context: TaskContext, tmp_path: Path) -> None:
    trainer = make_trainer(context, tmp_path, teacher=model_without_dropout(), states=matching(1e3))
    inputs = {**text_inputs(), **BATCH}
    teacher, student = trainer.teacher_outputs(inputs, torch.zeros(0)), trainer.forward(trainer.model, inputs)[1]
    assert trainer.distillation_loss(student, teacher).detach().abs() < 1e-2  # those of a teacher are in bfloat16


def test_kept_states_are_those_that_the_teacher_has(context: TaskContext, tmp_path: Path) -> None:
    trainer = make_trainer(context, tmp_path, states=matching())
    inputs, rows = {**text_inputs(), **BATCH}, torch.tensor([2, 0, 1])
    computed, states = trainer.teacher_outputs(inputs, rows)
    trainer.teacher = None
    kept, kept_states = trainer.teacher_outputs(inputs, rows)
    assert torch.equal(kept[0][0], computed[0][0])
    assert all(torch.equal(torch.cat(kept_states[layer]), torch.cat(each)) for layer, each in states.items())


def test_activation_checkpointing_changes_no_gradient(context: TaskContext, tmp_path: Path) -> None:
    batch, gradients_by_run = {**text_inputs(), **BATCH}, []
    for checkpoints in (False, True):
        trainer = make_trainer(context, tmp_path, states=matching())
        if checkpoints:
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        trainer.training_step(trainer.model, dict(batch))
        gradients_by_run.append(gradients(trainer.supernet.model))
    assert all(
        torch.allclose(gradient, gradients_by_run[1][name], atol=1e-6)
        for name, gradient in gradients_by_run[0].items()
    )

"""Every task type on a model that supports it: parent, supernet, scores and export."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from toy_tasks import CASES, Make
from toys import bert

from nas.exports.export import check_equal, outputs_in_subprocess, save_subnet, supernet_outputs
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.stages.parent import run_parent
from nas.stages.supernet import run_supernet
from nas.supernets.load import load_supernet
from nas.tasks.batches import model_inputs
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from nas.tasks.losses import divergence
from nas.tasks.types import TASK_TYPES
from search_spaces import TASKS, InputError


@pytest.mark.parametrize("case", CASES)
def test_every_task_from_the_parent_to_the_export(case: str, make: Make, tmp_path: Path) -> None:
    context, (metric, target) = make(case), CASES[case][3]
    run = Run.open(tmp_path / "run", context.recipe)
    run_parent(run, context)
    parent = score(context.load_model(run.parent), context.splits.test, [metric, "loss"])
    assert parent[metric].value >= target
    run_supernet(run, context)
    supernet, space = load_supernet(run, context)
    parent_scores = score(supernet.model, context.splits.search, [metric, "loss"])
    supernet.activate(space.smallest)
    subnet_scores = score(supernet.model, context.splits.search, [metric, "loss"])
    assert parent_scores["loss"].value != subnet_scores["loss"].value and math.isfinite(
        subnet_scores["loss"].standard_error
    )
    save_subnet(supernet, space.smallest, context, tmp_path / "small")
    inputs, expected = supernet_outputs(supernet, space.smallest, context)
    outputs = outputs_in_subprocess("torch", tmp_path / "small", context.recipe.task.type, inputs)
    check_equal(outputs, expected, space.smallest)
    with torch.no_grad():
        for weight in supernet.model.parameters():
            weight.mul_(1.1)
    _, changed = supernet_outputs(supernet, space.smallest, context)
    with pytest.raises(InputError, match="the export failed"):
        check_equal(outputs, changed, space.smallest)


@pytest.mark.parametrize("case", CASES)
def test_the_loss_equals_that_of_the_model(case: str, make: Make) -> None:
    context = make(case)
    model, examples = context.load_model().eval(), context.splits.test
    (batch, *_), first = examples.batches, examples.take(1)
    with torch.inference_mode():
        expected = examples.task.forward(model, batch).loss.item()
    assert score(model, first, ["loss"])["loss"].value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_divergence_from_an_equal_teacher_is_zero(case: str, make: Make) -> None:
    context = make(case)
    task, model = context.splits.task, context.load_model().eval()
    batch = context.splits.search.batches[0]
    student, teacher = task.forward(model, batch), context.load_model().eval()(**model_inputs(batch))
    same = divergence(
        task.logits_and_labels(student, batch), task.logits_and_labels(teacher, batch), task.activation, 2.0
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    different = divergence(
        task.logits_and_labels(task.forward(model, batch), batch),
        task.logits_and_labels(teacher, batch),
        task.activation,
        2.0,
    )
    assert abs(same.item()) < 1e-6 < 1e-5 < different.item()


def test_a_pretrained_language_model_is_fine_tuned_only_if_epochs_are_given(make: Make, text_folder: Path) -> None:
    from transformers import AutoModelForMaskedLM

    context = make("masks")
    assert not context.has_head and context.should_finetune
    AutoModelForMaskedLM.from_config(bert().config).save_pretrained(text_folder / "model")
    pretrained = make("masks")
    assert pretrained.has_head and pretrained.should_finetune
    recipe = pretrained.recipe.model_copy(
        update={"parent": pretrained.recipe.parent.model_copy(update={"epochs": None})}
    )
    assert not TaskContext(recipe).should_finetune
    bert(num_labels=2).save_pretrained(text_folder / "model")
    assert not make("masks").has_head


@pytest.mark.parametrize("kind", TASK_TYPES)
def test_every_task_type_has_known_metrics_and_a_default(kind: str) -> None:
    from nas.recipe.objectives import METRICS as ALL_METRICS
    from nas.tasks.types.classification import METRICS, Classification

    task_type = TASK_TYPES[kind]
    tables = list(METRICS.values()) if issubclass(task_type, Classification) else [task_type.metrics]
    assert all(set(table) <= set(ALL_METRICS) for table in tables)  # type: ignore[call-overload]
    assert any(TASKS[kind].default_metric in table for table in tables)  # type: ignore[operator]
    recipe = Recipe.parse({"model": "m", "task": {"type": kind, "train": "a", "test": "b"}, "space": {}})
    assert list(recipe.objectives) == [TASKS[kind].default_metric, "latency_ms"]

"""Experiment trackers: they log the losses, write into the run, and are checked before the training."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.stages.check import check_recipe
from nas.stages.parent import run_parent
from nas.stages.supernet import run_supernet
from nas.tasks.context import TaskContext
from search_spaces import InputError

ROLES = {"loss", "loss_largest", "loss_sampled", "loss_smallest"}


def trained(text_recipe: Path, folder: Path, name: str) -> Run:
    """A run up to its supernet whose trainings reported."""
    both = [f"{part}.report_to=[{name}]" for part in ("parent", "supernet")]
    recipe = Recipe.load(text_recipe, both)
    run, context = Run.open(folder, recipe), TaskContext(recipe)
    run_parent(run, context)
    run_supernet(run, context)
    return run


@pytest.mark.slow
def test_tensorboard_has_the_losses_of_the_roles(text_recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trained(text_recipe, tmp_path / "run", "tensorboard")
    for name, expected in (("parent", {"loss"}), ("supernet", ROLES)):
        events = EventAccumulator(str(run.logs / name)).Reload()
        assert {f"train/{loss}" for loss in expected} <= set(events.Tags()["scalars"])
        assert all(event.value > 0 for event in events.Scalars("train/loss"))
    assert not list(run.folder.rglob("checkpoints"))


@pytest.mark.slow
def test_mlflow_has_a_run_of_each_training(text_recipe: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    run = trained(text_recipe, tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{run.logs}/mlflow.db")
    runs = {each.info.run_name: each.data for each in client.search_runs(["0"])}
    assert runs.keys() == {"parent", "supernet"} and runs["supernet"].metrics.keys() >= ROLES
    assert runs["parent"].params["model_type"] == "bert"


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="it is there")
def test_a_missing_tracker_is_refused_before_the_training(text_recipe: Path) -> None:
    with pytest.raises(InputError, match=r'`pip install "paretoformer\[mlflow\]"`'):
        check_recipe(Recipe.load(text_recipe, ["supernet.report_to=[mlflow]"]))


def test_other_integrations_are_refused_and_a_started_run_may_change_them(text_recipe: Path) -> None:
    with pytest.raises(InputError, match=r"parent\.report_to"):
        Recipe.load(text_recipe, ["parent.report_to=[pigeon]"])
    plain = Recipe.load(text_recipe)
    assert not plain.differences(Recipe.load(text_recipe, ["parent.report_to=[tensorboard]"]))

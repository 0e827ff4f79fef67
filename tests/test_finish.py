"""The finish stage: which subnetworks are trained on, and that their weights are those of exports and scores."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import logits

from nas.exports.export import FinishedModel, supernet_outputs, weights_of
from nas.fronts.point import Point
from nas.pipeline import STAGES, search
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.stages.finish import choose_points, run_finish
from nas.supernets.load import load_supernet
from nas.tasks.context import TaskContext
from search_spaces import InputError, SubnetConfig

LATENCIES = (1.0, 1.9, 2.5, 3.2, 4.9, 7.0, 9.0)


def front() -> list[Point]:
    """A front whose accuracy grows with latency; the parent takes 10 ms."""
    subnets = [SubnetConfig((0,), (4,), (8 * n,), 48) for n in range(1, 1 + len(LATENCIES))]
    return [Point(s, {"latency_ms": ms, "accuracy": 0.5 + ms / 20}) for s, ms in zip(subnets, LATENCIES, strict=True)]


def recipe(models: int, **constraints: str) -> Recipe:
    """A recipe that trains so many subnetworks on."""
    data = {"model": "m", "task": {"type": "text-classification", "train": "a", "test": "b"}, "space": {}}
    return Recipe.parse({**data, "finish": {"models": models}, "constraints": constraints})


@pytest.mark.parametrize(
    ("models", "constraints", "latencies"),
    [
        (3, {}, [4.9, 3.2, 1.9]),  # at most a half, a third and a fifth of 10 ms
        (1, {}, [4.9]),
        (0, {}, []),
        (3, {"latency_ms": "<= 3"}, [2.5, 1.9, 1.0]),  # the bound, then the best within it that are left
        (9, {}, [4.9, 3.2, 1.9, 1.0, 2.5, 9.0, 7.0]),
    ],
)
def test_points_near_the_bound_and_at_fractions_of_the_parent_are_chosen(
    models: int, constraints: dict[str, str], latencies: list[float]
) -> None:
    chosen = choose_points(front(), recipe(models, **constraints), "latency_ms", 10.0)
    assert [point.values["latency_ms"] for point in chosen][:3] == latencies[:3] and len(chosen) == len(latencies)


def test_a_finished_subnetwork_is_what_is_scored_exported_and_resumed(finished: tuple[Path, Path]) -> None:
    path, folder = finished
    run = Run(folder)
    context = TaskContext(run.recipe)
    supernet, _ = load_supernet(run, context)
    (key,) = (folder_.name for folder_ in run.finished.iterdir() if folder_.is_dir())
    point = next(point for point in run.verified_points() if point.key == key)
    assert point.finished and not any(other.finished for other in run.verified_points() if other.key != key)
    weights = weights_of(run, supernet, point.subnet, context)
    assert isinstance(weights, FinishedModel)
    inputs, outputs = supernet_outputs(weights, point.subnet, context)
    _, inherited = supernet_outputs(supernet, point.subnet, context)
    assert not torch.allclose(outputs["logits"], inherited["logits"], atol=1e-3), "it must have been trained on"
    assert torch.allclose(logits(weights.model.cpu(), inputs), outputs["logits"].flatten(), atol=1e-6)
    before = {file.name: file.stat().st_mtime_ns for file in run.finished.glob("*/*")}
    search(Recipe.load(path), folder)
    assert {file.name: file.stat().st_mtime_ns for file in run.finished.glob("*/*")} == before


def test_a_killed_finish_keeps_what_is_finished(finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = finished
    run = Run(folder)
    weights = {file: file.read_bytes() for file in run.finished.glob("*/*.safetensors")}
    run.front_file.unlink()
    (run.finished / "chosen.json").unlink()
    monkeypatch.setattr("nas.stages.finish._finish_point", lambda *_: pytest.fail("it is trained twice"))
    run_finish(run, TaskContext(run.recipe))
    assert {file: file.read_bytes() for file in weights} == weights
    assert next(stage for stage in STAGES if stage.name == "finish").is_done(run)


def test_without_models_nothing_is_trained_on(finished: tuple[Path, Path]) -> None:
    _, folder = finished
    run = Run(folder)
    shutil.rmtree(run.finished)
    context = TaskContext(run.recipe.model_copy(update={"finish": run.recipe.finish.model_copy(update={"models": 0})}))
    run_finish(run, context)
    assert [file.name for file in run.finished.iterdir()] == ["chosen.json"]


def test_one_process_trains(finished: tuple[Path, Path]) -> None:
    from nas.stages.check import check_recipe

    with pytest.raises(InputError, match=r"`finish\.workers` must be left out"):
        check_recipe(Recipe.load(finished[0], ["finish.workers=2"]))

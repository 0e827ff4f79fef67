"""The profile of a run: latencies on one scale, robust to a disturbed start."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from conftest import read_lines

from nas.pipeline import profile
from nas.recipe.schema import Recipe
from nas.runs.files import delete
from nas.runs.run import Run
from nas.supernets import latency
from nas.supernets.space import search_space
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from predictors.measurement.timing import REFERENCE, Timing
from search_spaces import SubnetConfig

QUICK = ["parent.epochs=0.1", "supernet.epochs=0.1", "profile={samples: 12, precision: 0.1}"]


def test_a_start_that_was_disturbed_does_not_stretch_the_profile(text_recipe: Path, tmp_path: Path) -> None:
    recipe, folder = Recipe.load(text_recipe, QUICK), tmp_path / "run"
    profile(recipe, folder)
    run = Run(folder)
    undisturbed_ms = run.store.reference_ms(recipe.workload)
    rows = [row for row in read_lines(run.measurements) if row["stage"] == "profile"][:8]
    reference = next(row for row in read_lines(run.measurements) if row["stage"] == "anchor")
    slow = [row | {name: 4 * row[name] for name in row if name.startswith("latency_ms")} for row in (reference, *rows)]
    run.measurements.write_text("".join(json.dumps(row) + "\n" for row in slow))
    delete(run.predictor)
    predictor = profile(recipe, folder)
    assert run.store.reference_ms(recipe.workload) < 2 * undisturbed_ms
    predicted, measured = predictor.predict(predictor.subnets), run.store.rows(recipe.workload, "profile")
    assert predicted.max() < 2 * max(m.timing.latency_ms for m in measured) < 4 * undisturbed_ms


class Machine:
    """Stands in for the timing of models: the reference model takes given times, every model half of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, references_ms: Sequence[float]) -> None:
        self.left, self.precisions = iter(references_ms), list[float]()
        monkeypatch.setattr(latency, "measure_retrying_if_noisy", self.measured)

    def measured(
        self,
        models: dict[str, Any],
        reference: object,
        workload: object,
        *,
        reference_ms: float | None,
        precision: float,
    ) -> dict[str, Timing]:
        self.precisions.append(precision)
        measured_ms = next(self.left)
        scale_ms = reference_ms or measured_ms
        halves = {name: 0.5 for name in models} | {REFERENCE: 1.0}
        return {
            name: Timing(ratio, *[ratio * scale_ms] * 3, ratio * measured_ms, 11, 0.0, 1.0, measured_ms / scale_ms - 1)
            for name, ratio in halves.items()
        }


@pytest.fixture
def toy(text_recipe: Path, tmp_path: Path) -> tuple[Run, TaskContext, Supernet, list[SubnetConfig]]:
    """A run that has measured nothing, and 24 subnetworks: three groups."""
    recipe = Recipe.load(text_recipe, ["profile.precision=0.03"])
    context = TaskContext(recipe)
    supernet, space, rng = Supernet(context.load_model()), search_space(context), Random(0)
    subnets = {(subnet := space.sample(rng)).key: subnet for _ in range(60)}
    return Run.open(tmp_path / "run", recipe), context, supernet, list(subnets.values())[:24]


def test_the_median_reference_is_the_scale_and_disturbed_groups_are_measured_again(
    toy: tuple[Run, TaskContext, Supernet, list[SubnetConfig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, context, supernet, subnets = toy
    machine = Machine(monkeypatch, [16.0, 10.0, 8.0, 10.2])
    timed = latency.measure_subnets(run, context, supernet, subnets)
    assert [t.latency_ms for t in timed.values()] == [5.0] * 24 and next(machine.left, None) is None
    assert max(t.drift for t in timed.values()) == pytest.approx(0.02)
    assert machine.precisions == [context.recipe.profile.precision] * 4


def test_a_bar_is_only_shown_where_something_is_measured(
    toy: tuple[Run, TaskContext, Supernet, list[SubnetConfig]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, context, supernet, subnets = toy
    Machine(monkeypatch, [10.0])
    timed = latency.measure_subnets(run, context, supernet, subnets[:8])
    assert "profile" in capsys.readouterr().out
    assert latency.measure_subnets(run, context, supernet, subnets[:8]) == timed
    assert capsys.readouterr().out == ""


def test_a_closed_scale_does_not_move(
    toy: tuple[Run, TaskContext, Supernet, list[SubnetConfig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, context, supernet, subnets = toy
    Machine(monkeypatch, [16.0, 10.0, 8.0])
    latency.measure_subnets(run, context, supernet, subnets[:8])
    timed = latency.measure_subnets(run, context, supernet, subnets, may_set_reference=False)
    assert [t.latency_ms for t in timed.values()] == [8.0] * 24

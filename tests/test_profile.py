"""The profile of a run: latencies on one scale, robust to a disturbed start."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from refusals import read_lines

from nas.pipeline import profile
from nas.recipe.schema import Recipe
from nas.runs.files import delete
from nas.runs.run import Run
from nas.supernets import latency
from nas.supernets.space import search_space
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from predictors.measurement import rounds as rounds_module
from predictors.measurement.budget import Budget
from search_spaces import SubnetConfig

QUICK = ["parent.epochs=0.1", "supernet.epochs=0.1", "profile={samples: 12, precision: 0.1}"]


@pytest.mark.slow
def test_a_start_that_was_disturbed_does_not_stretch_the_profile(text_recipe: Path, tmp_path: Path) -> None:
    recipe, folder = Recipe.load(text_recipe, QUICK), tmp_path / "run"
    profile(recipe, folder)
    run = Run(folder)
    undisturbed_ms = run.target.reference_ms
    rows = [row for row in read_lines(run.measurements) if row["stage"] == "profile"][:8]
    reference = next(row for row in read_lines(run.measurements) if row["stage"] == "anchor")
    slow = [row | {name: 4 * row[name] for name in row if name.startswith("latency_ms")} for row in (reference, *rows)]
    run.measurements.write_text("".join(json.dumps(row) + "\n" for row in slow))
    delete(run.predictor)
    predictor = profile(recipe, folder)
    assert run.target.reference_ms < 2 * undisturbed_ms
    predicted, measured = predictor.predict(predictor.subnets), run.target.store.rows(recipe.workload, "profile")
    assert predicted.max() < 2 * max(m.timing.latency_ms for m in measured) < 4 * undisturbed_ms


class Machine:
    """Replaces what runs models, eight at once: in a group the reference takes the next given time, a model half."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, references_ms: Sequence[float]) -> None:
        self.left, self.reference_ms = list(references_ms), 0.0
        self.calls: list[object] = []
        monkeypatch.setattr(latency, "prepare", self.prepare)
        monkeypatch.setattr(latency, "models_at_once", lambda *_: 8)
        monkeypatch.setattr(rounds_module, "fastest_ms", self.fastest_ms)

    def prepare(self, model: object, *_: object) -> object:
        self.calls.append(model)
        if len(self.calls) % 8 == 2:  # the reference is loaded first, once
            self.reference_ms = self.left.pop(0)
        return model

    def fastest_ms(self, call: object, *_: object) -> float:
        return self.reference_ms if call is self.calls[0] else self.reference_ms / 2


@pytest.fixture
def toy(text_recipe: Path, tmp_path: Path) -> tuple[Run, TaskContext, Supernet, list[SubnetConfig]]:
    """A run that has measured nothing, and 24 subnetworks: three groups."""
    recipe = Recipe.load(text_recipe)
    context = TaskContext(recipe)
    supernet, space, rng = Supernet(context.load_model()), search_space(context), Random(0)
    subnets = {(subnet := space.sample(rng)).key: subnet for _ in range(60)}
    return Run.open(tmp_path / "run", recipe), context, supernet, list(subnets.values())[:24]


def test_the_median_anchor_is_the_scale(
    toy: tuple[Run, TaskContext, Supernet, list[SubnetConfig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, context, supernet, subnets = toy
    machine = Machine(monkeypatch, [16.0, 10.0, 8.0])
    timed = latency.measure_subnets(run.target, context, supernet, subnets, enough=lambda timings: True)
    assert [t.latency_ms for t in timed.values()] == [5.0] * 24 and not machine.left


def test_a_bar_is_only_shown_where_something_is_measured(
    toy: tuple[Run, TaskContext, Supernet, list[SubnetConfig]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, context, supernet, subnets = toy
    Machine(monkeypatch, [10.0])
    shown: list[str] = []

    @contextmanager
    def time_progress(title: str, budget: Budget) -> Iterator[Callable[[str], None]]:
        yield lambda note: shown.append(f"{title}: {note}")

    monkeypatch.setattr(latency, "time_progress", time_progress)
    options: dict[str, Any] = {"budget": Budget(600), "enough": lambda timings: True}
    timed = latency.measure_subnets(run.target, context, supernet, subnets[:8], **options)
    assert shown[0] == "profile: loading 1 of 8 models" and shown[-1] == "profile: round 6 of 8 models"
    shown.clear()
    assert latency.measure_subnets(run.target, context, supernet, subnets[:8]) == timed and not shown


def test_a_closed_scale_does_not_move(
    toy: tuple[Run, TaskContext, Supernet, list[SubnetConfig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, context, supernet, subnets = toy
    Machine(monkeypatch, [16.0])
    latency.measure_subnets(run.target, context, supernet, subnets[:8], enough=lambda timings: True)
    Machine(monkeypatch, [10.0, 8.0])
    options: dict[str, Any] = {"may_set_reference": False, "enough": lambda timings: True}
    timed = latency.measure_subnets(run.target, context, supernet, subnets, **options)
    assert [t.latency_ms for t in timed.values()] == [8.0] * 24


def test_a_profile_says_what_it_could_not_reach_in_one_line(
    text_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.load(text_recipe, [*QUICK[:2], "profile={samples: 40, minutes: 1.0e-4, error: 1.0e-6}"])
    predictor = profile(recipe, tmp_path / "run")
    lines = [line for line in capsys.readouterr().out.splitlines() if "of 40 subnetworks in" in line]
    assert len(lines) == 1 and lines[0].startswith("profile    10 ") and "`profile.minutes=0.0002`" in lines[0], lines
    assert len(predictor.subnets) == 10 == len({row["key"] for row in read_lines(tmp_path / "run/measurements.jsonl")})


def test_a_run_without_the_keys_of_budgets_opens_and_resumes_with_any(text_recipe: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(text_recipe)
    run = Run.open(tmp_path / "run", recipe)
    old = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    for section, key in (("profile", "minutes"), ("profile", "error"), ("verify", "minutes")):
        del old[section][key]
    del old["verify"]
    (run.folder / "recipe.yaml").write_text(yaml.safe_dump(old))
    assert Run(run.folder).recipe.profile.precision == recipe.profile.precision
    Run.open(run.folder, Recipe.load(text_recipe, ["profile.minutes=3", "verify.minutes=2"]))

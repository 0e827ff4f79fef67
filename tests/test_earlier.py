"""What earlier runs measured: nothing is measured twice on a device and workload, and elsewhere it is a prior."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import read_lines

from nas.config import Recipe
from nas.pipeline import profile
from nas.run import Run, remove
from search_spaces import InputError

QUICK = ["parent.epochs=0.1", "supernet.epochs=0.1", "profile.samples=12"]


def test_measurements_are_reused_and_other_workloads_are_a_prior(text_recipe: Path, tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    profile(Recipe.load(text_recipe, QUICK), first)
    told = [*QUICK, f"profile.earlier=[{first}]"]
    same = profile(Recipe.load(text_recipe, told), again)
    workload = Recipe.load(text_recipe).workload
    rows = [Run(run).store.rows(workload, "profile") for run in (first, again)]
    assert rows[1] == rows[0] and len(rows[0]) == 12 and not same.latency.prior
    assert Run(first).store.anchor_ms(workload) == Run(again).store.anchor_ms(workload)
    elsewhere = profile(Recipe.load(text_recipe, [*told, "workload.batch_size=2", "profile.samples=10"]), other)
    assert len(elsewhere.latency.prior) == 1 and "prior" in elsewhere.report.model
    assert len(elsewhere.subnets) == 10


def test_a_start_that_was_disturbed_does_not_stretch_the_profile(text_recipe: Path, tmp_path: Path) -> None:
    recipe, folder = Recipe.load(text_recipe, QUICK), tmp_path / "run"
    profile(recipe, folder)
    run = Run(folder)
    calm_ms = run.store.anchor_ms(recipe.workload)
    rows = [row for row in read_lines(run.measurements) if row["stage"] == "profile"][:8]
    anchor = next(row for row in read_lines(run.measurements) if row["stage"] == "anchor")
    slow = [row | {name: 4 * row[name] for name in row if name.startswith("latency_ms")} for row in (anchor, *rows)]
    run.measurements.write_text("".join(json.dumps(row) + "\n" for row in slow))
    remove(run.predictor)
    predictor = profile(recipe, folder)
    assert run.store.anchor_ms(recipe.workload) < 2 * calm_ms
    predicted, measured = predictor.predict(predictor.subnets), run.store.rows(recipe.workload, "profile")
    assert predicted.max() < 2 * max(m.timing.latency_ms for m in measured) < 4 * calm_ms


def test_a_folder_that_is_no_run_is_refused(text_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a run must be a folder"):
        profile(Recipe.load(text_recipe, [*QUICK, f"profile.earlier=[{tmp_path}]"]), tmp_path / "run")

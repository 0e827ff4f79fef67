"""Measurements of previous runs: reused on the same device and workload, a prior on others."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas.pipeline import profile
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from search_spaces import InputError

QUICK = ["parent.epochs=0.1", "supernet.epochs=0.1", "profile.samples=12"]


@pytest.mark.slow
def test_measurements_are_reused_and_other_workloads_are_a_prior(text_recipe: Path, tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    profile(Recipe.load(text_recipe, QUICK), first)
    overrides = [*QUICK, f"profile.earlier=[{first}]"]
    same = profile(Recipe.load(text_recipe, overrides), again)
    workload = Recipe.load(text_recipe).workload
    rows = [Run(run).target.store.rows(workload, "profile") for run in (first, again)]
    assert rows[1] == rows[0] and len(rows[0]) == 12 and not same.latency.prior
    assert Run(first).target.reference_ms == Run(again).target.reference_ms
    other_workload = profile(
        Recipe.load(text_recipe, [*overrides, "workload.batch_size=2", "profile.samples=10"]), other
    )
    assert len(other_workload.latency.prior) == 1 and "prior" in other_workload.report.model
    assert len(other_workload.subnets) == 10


def test_a_folder_that_is_not_a_run_is_refused(text_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a run must be a folder"):
        profile(Recipe.load(text_recipe, [*QUICK, f"profile.earlier=[{tmp_path}]"]), tmp_path / "run")

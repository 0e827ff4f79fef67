"""The whole road on a tiny BERT: front, report, export, resume, determinism."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.studies.study import STUDIES, open_studies, points


@pytest.mark.slow
def test_the_resolved_recipe_and_the_measurements_reproduce_a_run(finished: tuple[Path, Path], tmp_path: Path) -> None:
    first, again = Run(finished[1]), tmp_path / "again"
    recipe = Recipe.load(first.folder / "recipe.yaml")
    assert recipe == Recipe.load(finished[0]) and recipe.differences(first.recipe) == []
    again.mkdir()
    shutil.copy(first.measurements, again)
    command = [sys.executable, "-m", "nas.cli", "search", str(first.folder / "recipe.yaml"), "--run", str(again)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    second = Run(again)

    assert first.measurements.read_bytes() == second.measurements.read_bytes()
    assert first.trials.read_text() == second.trials.read_text()
    assert [(p.key, p.values) for p in first.front()] == [(p.key, p.values) for p in second.front()]
    for name in STUDIES:
        assert points(open_studies(first.study, recipe)[name]) == points(open_studies(second.study, recipe)[name])
    assert {p.source for p in first.verified_points()} == {"search", "uniform", "random", "parent"}
    assert all(p.measured for p in first.verified_points())
    assert first.report.stat().st_size > 100_000 and any(first.exports.iterdir())


def test_a_finished_run_is_only_shown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        Run(tmp_path)

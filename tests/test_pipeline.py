"""The whole road on a tiny BERT: front, report, export, resume, determinism."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nas.config import Recipe
from nas.engine.study import STUDIES, open_studies, points
from nas.pipeline import search
from nas.run import Run


@pytest.mark.slow
def test_the_same_seed_and_measurements_give_the_same_trials_and_front(text_recipe: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(text_recipe)
    first = search(recipe, tmp_path / "first")
    (tmp_path / "second").mkdir()
    shutil.copy(first.measurements, tmp_path / "second")
    second = search(recipe, tmp_path / "second")

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

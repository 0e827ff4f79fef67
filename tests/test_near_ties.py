"""Near ties: what noise alone may keep off the front is scored on more examples, and the front with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stand_in_search import space_and_evaluator

from experiments.bench.near_ties import ERROR, excess, offered, scored, true_volume
from experiments.bench.stand_in import stand_in_recipe
from nas.fronts.front import ParetoFront
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.studies.near_ties import MOST, near_ties, scores_on_more, with_more_examples


def test_the_front_and_what_a_standard_error_separates_from_it_get_more_examples() -> None:
    recipe = stand_in_recipe(40)
    space = space_and_evaluator(recipe)[0]
    points = scored(space, 0)
    ties = near_ties(points, recipe, space)
    assert 0 < len(ties) <= MOST and {tie.key for tie in ties} <= {point.key for point in points}
    worst = min(points, key=lambda point: point.values["accuracy"] - 10 * point.values["latency_ms"])
    assert worst.key not in {tie.key for tie in ties}, "what noise cannot lift to the front was scored again"
    assert near_ties([], recipe, space) == []


def test_scores_are_joined_by_their_variances() -> None:
    recipe = stand_in_recipe(40)
    point = scored(space_and_evaluator(recipe)[0], 0)[0]
    (joined,) = with_more_examples([point], {point.key: {"accuracy": (point.values["accuracy"] + 0.2, ERROR)}})
    assert joined.values["accuracy"] == pytest.approx(point.values["accuracy"] + 0.1)
    assert joined.errors["accuracy"] == pytest.approx(ERROR / 2**0.5) and joined.errors["latency_ms"] == 0
    assert with_more_examples([point], {}) == [point]


def test_more_examples_offer_better_models_and_promise_less_too_much() -> None:
    """Twenty draws of the noise: the true hypervolume of what is offered, and what its scores promise too much."""
    recipe = stand_in_recipe(40)
    space = space_and_evaluator(recipe)[0]
    fronts = [offered(space, recipe, seed) for seed in range(20)]
    volumes = [[true_volume(front) for front in of_seed] for of_seed in fronts]
    promised = [[float(excess(front).mean()) for front in of_seed] for of_seed in fronts]
    before, after = np.mean(volumes, axis=0)
    assert after > before
    before, after = np.mean(np.abs(promised), axis=0)
    assert after < 0.8 * before


@pytest.mark.slow
def test_a_search_with_plenty_of_examples_scores_near_ties_once(text_recipe: Path, tmp_path: Path) -> None:
    folder = text_recipe.parent
    rows = pd.read_parquet(folder / "train.parquet")
    rows.assign(sentence="new " + rows["sentence"]).to_parquet(folder / "dev.parquet")
    quick = ["profile.samples=10", "search.evaluations=8", "parent.epochs=0.1", "supernet.epochs=0.1"]
    quick += [f"task.validation={folder / 'dev.parquet'}", "finish.models=0"]
    recipe = Recipe.load(text_recipe, quick)
    run = search(recipe, tmp_path / "run")
    known = scores_on_more(run)
    assert known and all(error >= 0 for scores in known.values() for _, error in scores.values())
    before = run.near_ties.read_bytes()
    again = search(Recipe.load(text_recipe, [*quick, "constraints={latency_ms: <= 300%}"]), tmp_path / "run")
    lines = again.near_ties.read_bytes()
    assert lines.startswith(before) and len({*scores_on_more(again)}) == lines.count(b"\n"), "one was scored twice"
    assert isinstance(again.front(), ParetoFront)

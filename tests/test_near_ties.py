"""Near ties: what noise alone may keep off the front is scored on more examples, and the front with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
from test_trial_queue import space_and_evaluator

from experiments.bench.stand_in import stand_in_recipe, subnet_widths
from nas.fronts.front import ParetoFront
from nas.fronts.point import Point
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.studies.expected_front import expected_front
from nas.studies.near_ties import MOST, near_ties, scores_on_more, with_more_examples
from nas.studies.startup_trials import first_distinct
from search_spaces import SearchSpace, SubnetConfig

ERROR = 0.03


def true_accuracy(subnet: SubnetConfig) -> float:
    return 0.5 + sum(map(sum, subnet_widths(subnet))) / 4000


def scored(space: SearchSpace, seed: int) -> list[Point]:
    """Subnetworks with noisy scores; the latency grows with the true accuracy, so that all are on the true front."""
    rng, noise = Random(0), np.random.default_rng(seed)
    subnets = first_distinct(iter(space.sample(rng) for _ in range(400)), 60)
    points = []
    for subnet in subnets:
        accuracy, latency_ms = true_accuracy(subnet), float(subnet.num_hidden_layers)
        values = {"accuracy": accuracy + noise.normal(0, ERROR), "latency_ms": latency_ms}
        points.append(Point(subnet, values, {"accuracy": ERROR, "latency_ms": 0.0}))
    return points


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
    space, corner = space_and_evaluator(recipe)[0], {"accuracy": 0.4, "latency_ms": 5.0}
    volumes, promised = [], []
    for seed in range(20):
        points, noise = scored(space, seed), np.random.default_rng(100 + seed)
        ties = near_ties(points, recipe, space)
        more = {t.key: {"accuracy": (true_accuracy(t.subnet) + noise.normal(0, ERROR), ERROR)} for t in ties}
        fronts = [expected_front(some, recipe, space) for some in (points, with_more_examples(points, more))]
        volumes.append([truly(front).hypervolume(corner) for front in fronts])
        promised.append([float(np.mean([excess(point) for point in front])) for front in fronts])
    before, after = np.mean(volumes, axis=0)
    assert after > before
    before, after = np.mean(np.abs(promised), axis=0)
    assert after < 0.8 * before


def excess(point: Point) -> float:
    """By how much a point promises more than is true."""
    return point.values["accuracy"] - true_accuracy(point.subnet)


def truly(front: ParetoFront) -> ParetoFront:
    """The front with the true accuracies."""
    points = [replace(p, values={**p.values, "accuracy": true_accuracy(p.subnet)}) for p in front]
    return ParetoFront.of(points, front.objectives)


@pytest.mark.slow
def test_a_search_with_plenty_of_examples_scores_near_ties_once(text_recipe: Path, tmp_path: Path) -> None:
    folder = text_recipe.parent
    rows = pd.read_parquet(folder / "train.parquet")
    rows.to_parquet(folder / "dev.parquet")
    quick = ["profile.samples=10", "search.evaluations=8", "parent.epochs=0.1", "supernet.epochs=0.1"]
    quick += [f"task.validation={folder / 'dev.parquet'}", "finish.models=0"]
    recipe = Recipe.load(text_recipe, quick)
    run = search(recipe, tmp_path / "run")
    known = scores_on_more(run)
    assert known and all(error >= 0 for scores in known.values() for _, error in scores.values())
    before = run.near_ties.read_bytes()
    again = search(Recipe.load(text_recipe, [*quick, "constraints={latency_ms: <= 100%}"]), tmp_path / "run")
    lines = again.near_ties.read_bytes()
    assert lines.startswith(before) and len({*scores_on_more(again)}) == lines.count(b"\n"), "one was scored twice"
    assert isinstance(again.front(), ParetoFront)

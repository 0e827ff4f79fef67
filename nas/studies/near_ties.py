"""Near ties: subnetworks that noise alone may keep off the front are scored on more examples, and the front too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.fronts.front import ParetoFront, minimized_values
from nas.fronts.point import Point
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.studies.expected_front import expected_front, expected_points
from nas.studies.study import evaluated_points
from predictors.measurement.json_lines import JsonLines
from search_spaces import SearchSpace

if TYPE_CHECKING:
    import optuna

MOST = 16
"""Subnetworks of a study that get more examples, at most."""
WIDTHS = (0.0, 0.25, 0.5, 1.0)
"""Standard errors by which the metrics of a near tie are better than its score, from the nearest on."""

Scores = Mapping[str, tuple[float, float]]
"""Metric -> value and standard error."""


def near_ties(points: Sequence[Point], recipe: Recipe, space: SearchSpace) -> list[Point]:
    """The expected front and what would be on it with metrics better by up to a standard error, the nearest first.

    Args:
        points: Evaluated on the search slice, each subnetwork once.
        recipe: Its metrics and objectives.
        space: Which subnetworks are similar.
    """
    expected = [point for point in expected_points(points, recipe, space) if point.feasible]
    front = ParetoFront.of(expected, recipe.objectives)
    nearest: dict[str, int] = {}
    for number, width in enumerate(WIDTHS):
        for point in expected:
            if _reaches(_better_by(point, width, recipe), front):
                nearest.setdefault(point.key, number)
    by_key = {point.key: point for point in points}
    return [by_key[key] for key in sorted(nearest, key=lambda key: (nearest[key], key))[:MOST]]


def with_more_examples(points: Sequence[Point], scores: Mapping[str, Scores]) -> list[Point]:
    """The points, with each score joined with that on further examples, weighted by the inverse of its variance.

    Args:
        points: Evaluated on the search slice.
        scores: Key of a subnetwork -> its scores on further examples.
    """
    return [_joined(point, scores[point.key]) if point.key in scores else point for point in points]


def _joined(point: Point, more: Scores) -> Point:
    values, errors = dict(point.values), dict(point.errors)
    for name, (value, error) in more.items():
        weights = np.maximum([errors.get(name, 0.0), error], 1e-12) ** -2.0
        values[name] = float(np.average([values[name], value], weights=weights))
        errors[name] = float(weights.sum() ** -0.5)
    return replace(point, values=values, errors=errors)


def _better_by(point: Point, width: float, recipe: Recipe) -> Point:
    """A point whose metrics are better by so many of their standard errors."""
    signs = {name: 1 if recipe.objectives[name] == "maximize" else -1 for name in recipe.objectives}
    metrics = [name for name in recipe.metric_names if name in signs]
    better = {name: point.values[name] + signs[name] * width * point.errors.get(name, 0.0) for name in metrics}
    return replace(point, values=point.values | better)


def _reaches(point: Point, front: ParetoFront) -> bool:
    """Whether no point of a front dominates this one."""
    costs = minimized_values([*front, point], front.objectives)
    return not ((costs[:-1] <= costs[-1]).all(1) & (costs[:-1] < costs[-1]).any(1)).any()


def offered_front(run: Run, study: optuna.Study, recipe: Recipe, space: SearchSpace) -> ParetoFront:
    """The front of a study by expected values, given all scores on the search slice and on further examples."""
    points = with_more_examples(evaluated_points(study), scores_on_more(run))
    return expected_front(points, recipe, space)


def scores_on_more(run: Run) -> dict[str, Scores]:
    """Key of a subnetwork -> its stored scores on further examples."""
    return dict(_file(run).read())


def add_scores_on_more(run: Run, key: str, scores: Scores) -> None:
    """Stores the scores of a subnetwork on further examples."""
    _file(run).append([{"key": key, "scores": {name: list(pair) for name, pair in scores.items()}}])


def _file(run: Run) -> JsonLines[tuple[str, Scores]]:
    fix = "delete that line and type the same command again"
    return JsonLines(run.near_ties, _parsed, row="scores of a near tie", fix=fix)


def _parsed(line: Any) -> tuple[str, Scores]:
    scores = {name: (float(value), float(error)) for name, (value, error) in line["scores"].items()}
    return str(line["key"]), scores

"""The front by expected values: among many noisy scores the best are lucky, and are drawn back to what is likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nas.fronts.front import ParetoFront
from nas.fronts.point import Point
from nas.recipe.schema import Recipe
from predictors.surrogates import posterior_means
from search_spaces import SearchSpace


def expected_front(points: Sequence[Point], recipe: Recipe, space: SearchSpace) -> ParetoFront:
    """The front of evaluated subnetworks, whose metrics are their posterior means given all scores and their errors.

    Args:
        points: Evaluated on the search slice, each subnetwork once; feasible by the scores themselves.
        recipe: Its metrics and objectives.
        space: Which subnetworks are similar.
    """
    return ParetoFront.of(expected_points(points, recipe, space), recipe.objectives)


def expected_points(points: Sequence[Point], recipe: Recipe, space: SearchSpace) -> list[Point]:
    """The points with their metrics' posterior means, see `expected_front`."""
    if not points:
        return []
    features = space.parameters.encode([point.subnet for point in points])
    means = {
        name: posterior_means(
            features,
            np.array([point.values[name] for point in points]),
            np.array([point.errors.get(name, 0.0) for point in points]),
        ).tolist()
        for name in recipe.metric_names
    }
    return [
        replace(point, values=point.values | {name: column[i] for name, column in means.items()})
        for i, point in enumerate(points)
    ]

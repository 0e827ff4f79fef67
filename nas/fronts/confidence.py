"""How sure hypervolumes are: their intervals over resamples of the examples that metrics are computed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nas.fronts.front import minimized_values
from nas.fronts.pareto import Array, hypervolume
from nas.fronts.point import Point
from nas.recipe.objectives import Direction

COVERAGE = 0.9
"""Share of the resamples in an interval."""
SEARCH, BASELINE = "sampler", "random"
"""The search without the uniform scalings, and what it is compared with: both are proposed by a sampler alone."""

Resampled = Mapping[str, Mapping[str, Sequence[float]]]
"""Key of a model -> metric -> its values on resamples of the examples, the same ones for every model."""


def hypervolume_intervals(
    groups: Mapping[str, Sequence[Point]],
    resampled: Resampled,
    reference: Mapping[str, float],
    objectives: Mapping[str, Direction],
) -> dict[str, list[float]]:
    """The intervals of the hypervolumes of groups of models, and of the search minus random search.

    Args:
        groups: Name -> its models.
        resampled: Values on resamples; of models that lack one nothing is said.
        reference: The reference point.
        objectives: Metric or cost -> direction.

    Returns:
        Name, and ``gain`` -> both ends; empty if models have no values on the same resamples.
    """
    metrics = [name for name in objectives if any(name in values for values in resampled.values())]
    keys = {point.key for points in groups.values() for point in points}
    counts = {len(resampled.get(key, {}).get(name, ())) for key in keys for name in metrics}
    if len(counts) != 1 or 0 in counts:
        return {}
    volumes = {name: _volumes(points, metrics, resampled, reference, objectives) for name, points in groups.items()}
    if SEARCH in volumes and BASELINE in volumes:
        volumes["gain"] = volumes[SEARCH] - volumes[BASELINE]
    ends = (1 - COVERAGE) / 2, (1 + COVERAGE) / 2
    return {name: [float(end) for end in np.quantile(values, ends)] for name, values in volumes.items()}


def _volumes(
    points: Sequence[Point],
    metrics: Sequence[str],
    resampled: Resampled,
    reference: Mapping[str, float],
    objectives: Mapping[str, Direction],
) -> Array:
    """The hypervolume of the feasible models with the metrics of each resample (resamples,)."""
    feasible, names = [point for point in points if point.feasible], list(objectives)
    count = len(next(iter(resampled.values()))[metrics[0]])
    signs = np.array([1.0 if objectives[name] == "minimize" else -1.0 for name in names])
    corner = signs * np.array([reference[name] for name in names])
    values = np.repeat(minimized_values(feasible, dict(objectives))[None], count, axis=0)
    for name in metrics:
        column = names.index(name)
        drawn = np.array([resampled[point.key][name] for point in feasible]).reshape(len(feasible), count)
        values[:, :, column] = signs[column] * drawn.T
    return np.array([hypervolume(each, corner) for each in values])

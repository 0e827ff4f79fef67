"""The models that a front is compared with, one row each."""

from __future__ import annotations

from collections.abc import Sequence

from nas.fronts.front import ParetoFront
from nas.fronts.point import PARENT_RUNTIMES, Point, Source
from nas.recipe.objectives import is_cost

REFERENCES: tuple[Source, ...] = ("parent", *PARENT_RUNTIMES, "parent-int8", "layer-drop")
"""Sources of which every point is a row."""
SEARCHES: tuple[Source, ...] = ("uniform", "random")
"""Sources of which one point is a row: the best that costs at most what the knee of the front costs."""


def baseline_rows(front: ParetoFront, verified: Sequence[Point]) -> list[Point]:
    """The parent, also in another runtime and in int8, layer dropping, uniform scaling and random search.

    Args:
        front: The front of a run.
        verified: All models that were measured like it.
    """
    rows = [point for source in REFERENCES for point in verified if point.source == source]
    for source in SEARCHES:
        own = ParetoFront.of((point for point in verified if point.source == source), front.objectives)
        if len(own):
            rows.append(_as_cheap_as_the_knee(own, front))
    return rows


def _as_cheap_as_the_knee(own: ParetoFront, front: ParetoFront) -> Point:
    cost = next((name for name in front.objectives if is_cost(name)), None)
    if cost is None or not len(front):
        return own.best(own.primary_metric)
    limit = ">=" if front.objectives[cost] == "maximize" else "<="
    affordable = own.where(f"{cost} {limit} {front.knee().values[cost]!r}")
    return affordable.best(own.primary_metric) if len(affordable) else own.best(cost)

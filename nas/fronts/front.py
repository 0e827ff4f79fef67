"""ParetoFront: the non-dominated subnetworks of a run, how to filter them and how to pick one.


front = ParetoFront.of(points, {"accuracy": "maximize", "latency_ms": "minimize"})
front.where("latency_ms <= 5, size_mb < 40").knee()
front.pick("latency_ms <= 5")
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.fronts.pareto import Array, hypervolume, non_dominated
from nas.fronts.point import Point
from nas.fronts.table import html_table, rich_table
from nas.recipe.objectives import (
    FINETUNED_SUFFIX,
    OPERATORS,
    Bound,
    Direction,
    against_bounds,
    base_name,
    is_cost,
    parse_condition,
    total_violation,
)
from search_spaces.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

NAMED_PICKS = ("knee", "fastest", "best")


def minimized_values(points: Sequence[Point], objectives: dict[str, Direction]) -> Array:
    """Objective values with the sign that makes them minimised, shape ``(len(points), len(objectives))``."""
    for point in points:
        missing = [name for name in objectives if name not in point.values]
        if missing:
            raise InputError(
                f"Every point must have a value of every objective, but {point.key} lacks `{missing[0]}`; "
                f"{did_you_mean(missing[0], point.values)}."
            )
    rows = [[_sign(way) * point.values[name] for name, way in objectives.items()] for point in points]
    return np.array(rows, dtype=np.float64).reshape(len(points), len(objectives))


def _sign(direction: Direction) -> int:
    return 1 if direction == "minimize" else -1


def reference_point(points: Sequence[Point], objectives: dict[str, Direction]) -> dict[str, float]:
    """A reference point for hypervolumes: the worst value of each objective, moved outward by 10 % of its range.

    Compute it from all points of a run, so that the hypervolumes of its fronts are comparable. An objective that does
    not vary is moved by 10 % of its absolute value (by 1 if that is zero). NaN and infinities are ignored.

    Raises:
        InputError: If an objective has no finite value.
    """
    reference = {}
    for name, column in zip(objectives, minimized_values(points, objectives).T, strict=True):
        finite = column[np.isfinite(column)]
        if not len(finite):
            raise InputError(
                f"A reference point needs a finite value of `{name}`, but got none: evaluate a point first."
            )
        worst = float(finite.max())
        margin = 0.1 * (float(np.ptp(finite)) or abs(worst)) or 1.0
        reference[name] = _sign(objectives[name]) * (worst + margin)
    return reference


@dataclass(frozen=True)
class ParetoFront:
    """The feasible, non-dominated subnetworks; build it with `of`.

    Attributes:
        points: Sorted by the first minimised objective, ascending.
        objectives: Metric or cost -> direction.
    """

    points: tuple[Point, ...]
    objectives: dict[str, Direction]

    def __post_init__(self) -> None:
        bad = [f"`{name}: {way}`" for name, way in self.objectives.items() if way not in ("maximize", "minimize")]
        if bad or not self.objectives:
            got = bad[0] if bad else "no objective"
            raise InputError(f"Each objective must be `maximize` or `minimize`, and one must exist, but got {got}.")

    @classmethod
    def of(cls, points: Iterable[Point], objectives: dict[str, Direction]) -> ParetoFront:
        """Keeps the feasible, non-dominated points, one of each objective vector; their order does not matter.

        Raises:
            InputError: If a point lacks an objective.
        """
        empty = cls((), dict(objectives))
        feasible = sorted((p for p in points if p.feasible), key=_sort_key)
        costs = minimized_values(feasible, objectives)
        kept = {tuple(costs[i]): feasible[i] for i in np.flatnonzero(non_dominated(costs))[::-1]}
        first = next((i for i, way in enumerate(objectives.values()) if way == "minimize"), 0)
        ordered = sorted(kept.items(), key=lambda item: (item[0][first], item[1].key))
        return replace(empty, points=tuple(point for _, point in ordered))

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    @property
    def value_names(self) -> list[str]:
        """All metrics and costs: objectives first, each followed by its value after fine-tuning; the others sorted."""
        known = {name for point in self.points for name in point.values}
        first = [n for name in self.objectives for n in (name, *({name + FINETUNED_SUFFIX} & known))]
        return [*first, *sorted(known - set(first))]

    @property
    def primary_metric(self) -> str:
        """The first objective that is a metric, such as accuracy or loss; else the first objective."""
        return next((name for name in self.objectives if not is_cost(name)), next(iter(self.objectives)))

    def best(self, name: str) -> Point:
        """The best point in one objective.

        Raises:
            InputError: If it is not an objective, or the front is empty.
        """
        if name not in self.objectives:
            raise InputError(f"`best` needs an objective, but got `{name}`; {did_you_mean(name, self.objectives)}.")
        self._require_points()
        return min(self.points, key=lambda point: _sign(self.objectives[name]) * point.values[name])

    def knee(self) -> Point:
        """The best trade-off, with each objective scaled to 0-1 over the front.

        With two objectives: the point farthest from the line between the two ends, towards the ideal (Das, Struct.
        Optim. 18, 1999; Branke, Deb, Dierolf & Osswald, PPSN 2004). With more: the point nearest to the ideal.

        Raises:
            InputError: If the front is empty.
        """
        self._require_points()
        costs = minimized_values(self.points, self.objectives)
        span = np.ptp(costs, axis=0)
        scaled = (costs - costs.min(axis=0)) / np.where(span > 0, span, 1.0)
        distance = scaled.sum(axis=1) if len(self.objectives) == 2 else np.linalg.norm(scaled, axis=1)
        return self.points[int(np.argmin(np.round(distance, 12)))]

    def where(self, condition: str) -> ParetoFront:
        """The points that satisfy all comma-separated conditions, e.g. ``"latency_ms <= 5, accuracy > 0.9"``.

        A point that lacks a value does not satisfy a condition on it.

        Raises:
            InputError: If a condition cannot be parsed, or no point has its metric or cost.
        """
        bounds = self._parse_bounds(condition)
        kept = (p for p in self.points if all(b.violation(p.values.get(n, math.nan)) <= 0 for n, b in bounds))
        return replace(self, points=tuple(kept))

    def under(self, workload: str) -> ParetoFront:
        """The points that are best under one of several workloads, costs under the others left out.

        Args:
            workload: Its name, as in ``latency_ms@name``.

        Raises:
            InputError: If no objective is a cost under it.
        """
        known = list(dict.fromkeys(name.partition("@")[2] for name in self.objectives if "@" in name))
        if workload not in known:
            hint = did_you_mean(workload, known) if known else "this front is of one, without a name"
            raise InputError(f"A workload must be one that `objectives` name, but got `{workload}`; {hint}.")
        own = {name: way for name, way in self.objectives.items() if name.partition("@")[2] in ("", workload)}
        return ParetoFront.of(self.points, own)

    def pick(self, what: str) -> Point:
        """One point of the front.

        Args:
            what: ``knee``; ``fastest`` (lowest ``latency_ms``); under one of several workloads, ``knee@name`` and
                ``fastest@name``; ``best`` (best primary metric); a key or a unique prefix of one; or a condition as in
                `where`: the best primary metric that satisfies it.

        Raises:
            InputError: If no point fits; for a condition, with the values of the closest point.
        """
        self._require_points()
        if any(op in what for op in OPERATORS):
            matching = self.where(what)
            return matching.best(self.primary_metric) if len(matching) else self._raise_with_closest(what)
        if what == "knee":
            return self.knee()
        if what.startswith("knee@"):
            return self.under(what.removeprefix("knee@")).knee()
        if what == "best":
            return self.best(self.primary_metric)
        if base_name(what) == "fastest":
            return self._fastest(what.replace("fastest", "latency_ms", 1))
        return self._by_key(what)

    def hypervolume(self, reference: dict[str, float]) -> float:
        """The volume this front dominates up to a reference point (see `reference_point`), in the objectives' units.

        Raises:
            InputError: If the reference lacks an objective.
        """
        missing = [name for name in self.objectives if name not in reference]
        if missing:
            raise InputError(f"A reference point must name every objective, but `{missing[0]}` is not in {reference}.")
        corner = np.array([_sign(way) * reference[name] for name, way in self.objectives.items()])
        return hypervolume(minimized_values(self.points, self.objectives), corner)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"objectives": dict(self.objectives), "points": [point.to_dict() for point in self.points]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ParetoFront:
        """Reads back what `to_dict` wrote."""
        return cls(tuple(Point.from_dict(point) for point in data["points"]), dict(data["objectives"]))

    def to_pandas(self) -> pd.DataFrame:
        """One row per point: key, metrics and costs, ``<name>_error`` if known, source, measured, subnet as text."""
        import pandas as pd

        rows = [
            {"key": p.key, **{n: p.values.get(n, math.nan) for n in self.value_names}}
            | {f"{name}_error": error for name, error in p.errors.items()}
            | {"source": p.source, "measured": p.measured, "subnet": str(p.subnet)}
            for p in self.points
        ]
        return pd.DataFrame(rows, columns=None if rows else ["key", *self.value_names, "source", "measured", "subnet"])

    def table(self) -> Table:
        """The front for the terminal: key, objectives, size and subnetwork; fits 80 columns."""
        return rich_table(self)

    def _repr_html_(self) -> str:
        return html_table(self)

    def _fastest(self, latency: str) -> Point:
        if latency not in self.value_names:
            known = [name for name in self.value_names if base_name(name) == "latency_ms"]
            hint = f"try `{known[0].replace('latency_ms', 'fastest')}`" if known else "choose another pick"
            raise InputError(
                f"`fastest` needs `{latency}`, but the front has {', '.join(self.value_names)} only; {hint}."
            )
        return min(self.points, key=lambda point: point.values.get(latency, math.inf))

    def _by_key(self, prefix: str) -> Point:
        matching = {point.key: point for point in self.points[::-1] if prefix and point.key.startswith(prefix)}
        if len(matching) != 1:
            law = "The prefix of a key must be unique" if matching else "A pick must be a name, a key or a condition"
            hint = did_you_mean(prefix, matching or [*NAMED_PICKS, *(point.key for point in self.points)])
            raise InputError(f"{law}, but got `{prefix}`; {hint}; or a condition like `latency_ms <= 5`.")
        return next(iter(matching.values()))

    def _require_points(self) -> None:
        if not self.points:
            raise InputError("A pick needs a point on the front, but no point is feasible; loosen a constraint.")

    def _parse_bounds(self, condition: str) -> list[tuple[str, Bound]]:
        bounds = [parse_condition(part) for part in condition.split(",")]
        for name, _ in bounds if self.points else ():
            if name not in self.value_names:
                raise InputError(
                    f"A condition must be on a known metric or cost, but got `{name}`; "
                    f"{did_you_mean(name, self.value_names)}."
                )
        return bounds

    def _raise_with_closest(self, condition: str) -> Point:
        bounds = dict(self._parse_bounds(condition))
        closest = min(self.points, key=lambda point: total_violation(point.values, bounds))
        raise InputError(
            f"A point must satisfy `{condition.strip()}`, but no point on the front does; the closest, {closest.key}, "
            f"reaches {against_bounds(closest.values, bounds)}; loosen the condition."
        )


def _sort_key(point: Point) -> tuple[str, bool, str, str]:
    """A sort key that does not depend on the input order; of two equal subnetworks the measured one comes first."""
    return point.key, not point.measured, point.source, json.dumps(point.to_dict(), sort_keys=True)

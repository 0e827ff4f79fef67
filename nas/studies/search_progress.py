"""Standing: how far a study has got: its front, its hypervolume, its best, and which constraint binds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas.fronts.pareto import hypervolume, non_dominated
from nas.fronts.point import Point
from nas.recipe.objectives import against_bounds
from nas.recipe.schema import Recipe
from search_spaces import InputError

GROWTH = 1e-3
"""By how much of itself the hypervolume must grow not to have stalled."""
HOPELESS = 100
"""Evaluations without a feasible one after which a search is not worth going on with."""


@dataclass
class Reference:
    """Where the hypervolumes of all studies of a run are measured from: one point that never moves once it is set.

    It is the worst value of each objective among the first evaluations of the first study that has had them, which are
    the corners of the space and its uniform scalings, moved outward by a tenth of their range.
    """

    point: np.ndarray | None = None

    def set(self, start: np.ndarray) -> None:
        """Sets it by the objectives (n, m), all minimised, of the first evaluations."""
        span = np.ptp(start, axis=0)
        self.point = start.max(axis=0) + 0.1 * np.where(span > 0, span, np.maximum(np.abs(start[0]), 1.0))


class Standing:
    """The evaluated subnetworks of one study in a few numbers, each kept up to date point by point.

    Args:
        recipe: Its objectives and constraints.
        first: After how many evaluations the reference is set, unless another study has set it.
        reference: What the studies of a run share.
    """

    def __init__(self, recipe: Recipe, first: int, reference: Reference) -> None:
        self.recipe = recipe
        self.first = first
        self.reference = reference
        self.signs = np.array([1.0 if way == "minimize" else -1.0 for way in recipe.objectives.values()])
        self.front = np.empty((0, len(self.signs)))
        self.evaluated = 0
        self.feasible = 0
        self.best: float | None = None
        self.volume = 0.0
        self.since_growth = 0
        self._measured = False
        self._start: list[np.ndarray] = []
        self._missed: dict[str, list[float]] = {name: [] for name in recipe.bounds}

    def add(self, point: Point) -> None:
        """Takes one more evaluated subnetwork into account."""
        values = self.signs * np.array([point.values[name] for name in self.recipe.objectives])
        self.evaluated += 1
        self.since_growth += 1
        if point.feasible:
            self._add_feasible(point, values)
        for name, bound in self.recipe.bounds.items() if not self.feasible else ():
            self._missed[name].append(bound.violation(point.values[name]))
        if self.reference.point is None:
            self._start.append(values)
            if self.evaluated == self.first:
                self.reference.set(np.array(self._start))
        if not self._measured and self.reference.point is not None:
            self._measured = True
            self.volume = hypervolume(self.front, self.reference.point)
            self.since_growth = 0

    def _add_feasible(self, point: Point, values: np.ndarray) -> None:
        self.feasible += 1
        quality = self.recipe.primary_metric
        mine = point.values[quality]
        better = max if self.recipe.objectives[quality] == "maximize" else min
        self.best = mine if self.best is None else better(mine, self.best)
        if (self.front <= values).all(axis=1).any():
            return
        gain = self._gain(values)
        if gain > GROWTH * self.volume:
            self.since_growth = 0
        self.volume += gain
        front = np.concatenate([self.front, values[None]])
        self.front = front[non_dominated(front)]

    def _gain(self, values: np.ndarray) -> float:
        """What a point adds to the hypervolume: its own box, less what the front dominates of it."""
        reference = self.reference.point
        if reference is None or not self._measured:
            return 0.0
        own = float(np.prod(np.maximum(reference - values, 0.0)))
        return own - hypervolume(np.maximum(self.front, values), reference) if own else 0.0

    def note(self) -> str:
        """The standing in a few words."""
        if self.best is None:
            return "nothing feasible yet"
        best = f"best {self.recipe.primary_metric} {self.best:.4f}"
        volume = f" · hypervolume {self.volume:.4g}" if self._measured else ""
        feasible = f"{self.feasible} feasible · " if self.recipe.bounds else ""
        return f"{feasible}{len(self.front)} on the front{volume} · {best}"

    def check_hope(self) -> None:
        """Raises InputError once a hundred evaluations have found nothing feasible; it says which constraint binds."""
        if self.feasible or self.evaluated < HOPELESS:
            return
        shares = {name: float(np.mean(np.array(missed) > 0)) for name, missed in self._missed.items()}
        binds = max(shares, key=lambda name: shares[name])
        bound, least = self.recipe.bounds[binds], min(self._missed[binds])
        closest = bound.value + least * (1 if bound.op in ("<=", "<") else -1)
        others = ", ".join(f"{name} by {share:.0%}" for name, share in shares.items() if name != binds)
        raise InputError(
            f"none of {self.evaluated} subnetworks evaluated meets the constraints; `{binds}` binds: "
            f"{shares[binds]:.0%} of them miss it, and the closest reaches "
            f"{against_bounds({binds: closest}, {binds: bound})}"
            f"{f' (missed too: {others})' if others else ''}. Loosen it or widen `space`, in a new run."
        )

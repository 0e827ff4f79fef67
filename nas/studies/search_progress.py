"""Progress of a study: its front, hypervolume and best point, and the constraint that most subnetworks miss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas.fronts.pareto import hypervolume, non_dominated
from nas.fronts.point import Point
from nas.recipe.objectives import against_bounds
from nas.recipe.schema import Recipe
from search_spaces import InputError

MIN_IMPROVEMENT = 1e-3
"""The hypervolume has stalled while it does not grow by more than this share of it."""
INFEASIBLE_LIMIT = 100
"""After so many evaluations without a feasible one the search stops."""


@dataclass
class HypervolumeReference:
    """The reference point of the hypervolumes of all studies of a run; it never moves once it is set.

    It is the worst value of each objective among the first evaluations of the first study that has had them, which are
    the extreme subnetworks of the space and its uniform scalings, moved outward by a tenth of their range.
    """

    point: np.ndarray | None = None

    def set(self, values: np.ndarray) -> None:
        """Sets it from the objectives (n, m), all minimised, of the first evaluations."""
        span = np.ptp(values, axis=0)
        self.point = values.max(axis=0) + 0.1 * np.where(span > 0, span, np.maximum(np.abs(values[0]), 1.0))


class SearchProgress:
    """Statistics of the evaluated subnetworks of one study, updated point by point.

    Args:
        recipe: Its objectives and constraints.
        set_reference_after: After how many evaluations the reference is set, unless another study has set it.
        reference: Shared by the studies of a run.

    Attributes:
        front: (n, objectives) values of the feasible front, signed to be minimised.
        n_evaluated: Evaluated subnetworks.
        n_feasible: Those that meet all constraints.
        best: Best metric of a feasible subnetwork; None if there is none.
        hypervolume: Hypervolume of the front; 0 until the reference is set.
    """

    def __init__(self, recipe: Recipe, set_reference_after: int, reference: HypervolumeReference) -> None:
        self.recipe = recipe
        self.set_reference_after = set_reference_after
        self.reference = reference
        self.signs = np.array([1.0 if way == "minimize" else -1.0 for way in recipe.objectives.values()])
        self.front = np.empty((0, len(self.signs)))
        self.n_evaluated = 0
        self.n_feasible = 0
        self.best: float | None = None
        self.hypervolume = 0.0
        self._has_reference = False
        self._volumes: list[float] = []
        self._first_values: list[np.ndarray] = []
        self._bounds = recipe.bounds
        self._bounded: dict[str, list[float]] = {name: [] for name in self._bounds}

    def add(self, point: Point, *, is_planned: bool = False) -> None:
        """Adds one more evaluated subnetwork; one that was planned before the sampler does not use up its patience."""
        values = self.signs * np.array([point.values[name] for name in self.recipe.objectives])
        self.n_evaluated += 1
        if point.feasible:
            self._add_feasible(point, values)
        for name, values_before in self._bounded.items() if not self.n_feasible else ():
            values_before.append(point.values[name])
        if self.reference.point is None:
            self._first_values.append(values)
            if self.n_evaluated == self.set_reference_after:
                self.reference.set(np.array(self._first_values))
        if not self._has_reference and self.reference.point is not None:
            self._has_reference = True
            self.hypervolume = hypervolume(self.front, self.reference.point)
        if not is_planned and self._has_reference:
            self._volumes.append(self.hypervolume)

    def _add_feasible(self, point: Point, values: np.ndarray) -> None:
        self.n_feasible += 1
        metric = self.recipe.primary_metric
        better = max if self.recipe.objectives[metric] == "maximize" else min
        value = point.values[metric]
        self.best = value if self.best is None else better(value, self.best)
        if (self.front <= values).all(axis=1).any():
            return
        self.hypervolume += self._improvement(values)
        front = np.concatenate([self.front, values[None]])
        self.front = front[non_dominated(front)]

    def _improvement(self, values: np.ndarray) -> float:
        """What a point adds to the hypervolume: its own box, less what the front dominates of it."""
        reference = self.reference.point
        if reference is None or not self._has_reference:
            return 0.0
        box = float(np.prod(np.maximum(reference - values, 0.0)))
        return box - hypervolume(np.maximum(self.front, values), reference) if box else 0.0

    def has_stalled(self, patience: int) -> bool:
        """Whether so many proposals together have not added `MIN_IMPROVEMENT` to the hypervolume of a front."""
        if len(self._volumes) <= patience or not self.n_feasible:
            return False
        return self._volumes[-1] <= (1 + MIN_IMPROVEMENT) * self._volumes[-1 - patience]

    def summary(self) -> str:
        """The progress in a few words."""
        if self.best is None:
            return "nothing feasible yet"
        best = f"best {self.recipe.primary_metric} {self.best:.4f}"
        volume = f" · hypervolume {self.hypervolume:.4g}" if self._has_reference else ""
        feasible = f"{self.n_feasible} feasible · " if self._bounds else ""
        return f"{feasible}{len(self.front)} on the front{volume} · {best}"

    def check_feasibility(self) -> None:
        """Raises InputError once many evaluations have found nothing feasible; it names the binding constraint."""
        if self.n_feasible or self.n_evaluated < INFEASIBLE_LIMIT:
            return
        shares = {
            name: float(np.mean([self._bounds[name].violation(value) > 0 for value in values]))
            for name, values in self._bounded.items()
        }
        binding = max(shares, key=lambda name: shares[name])
        bound = self._bounds[binding]
        closest = min(self._bounded[binding], key=bound.violation)
        missed = ", ".join(f"{name} by {share:.0%}" for name, share in shares.items() if name != binding)
        others = f" (missed too: {missed})" if missed else ""
        raise InputError(
            f"none of {self.n_evaluated} subnetworks evaluated meets the constraints; `{binding}` binds: "
            f"{shares[binding]:.0%} of them miss it, and the closest reaches "
            f"{against_bounds({binding: closest}, {binding: bound})}{others}. Loosen it, or widen `space` in a new "
            "run."
        )

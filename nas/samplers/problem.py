"""Problem: what a sampler may know of a search beyond its study; Model: that, and what is learned for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nas.fronts.pareto import non_dominated
from nas.samplers.encoding import Encoding
from nas.samplers.trial_history import Evaluated, constraint_of, genomes_of, values_of
from predictors.surrogates import FittedSurrogate


@dataclass(frozen=True)
class Candidates:
    """What is known of points without evaluating them.

    Attributes:
        features: Features (n, d) for the surrogates.
        values: Objectives (n, m) in the study's own directions, NaN where they must be learned.
        violations: Summed violation of the known constraints (n,), at most 0 where they hold.
    """

    features: np.ndarray
    values: np.ndarray
    violations: np.ndarray


class Problem(Protocol):
    """What a sampler may know of a search beyond its study. Genomes are those of its `Encoding`.

    Attributes:
        known_constraints: Names of the constraints that `describe` accounts for; others are learned from the trials.
    """

    known_constraints: frozenset[str]

    def keys(self, genomes: np.ndarray) -> list[bytes]:
        """The same for genomes that mean the same thing, so that nothing is proposed twice."""
        ...

    def describe(self, genomes: np.ndarray) -> Candidates:
        """All that is known of genomes (n, D)."""
        ...


class PlainProblem:
    """Nothing is known: every objective is learned from the parameters alone."""

    known_constraints: frozenset[str] = frozenset()

    def __init__(self, encoding: Encoding, objectives: int) -> None:
        self.encoding = encoding
        self.objectives = objectives

    def keys(self, genomes: np.ndarray) -> list[bytes]:
        """The choices of the parameters that count."""
        return [row.tobytes() for row in self.encoding.canonical(genomes)]

    def describe(self, genomes: np.ndarray) -> Candidates:
        """The encoding's features and nothing else."""
        unknown = np.full((len(genomes), self.objectives), np.nan)
        return Candidates(self.encoding.features(genomes), unknown, np.zeros(len(genomes)))


class Model:
    """Every objective and constraint of any point: exact where known, else learned with a spread.

    Args:
        problem: What is known.
        signs: 1 for each objective that is minimised, -1 for others (m,).
        done: What to learn from.
        seed: Folds of the cross-validation.
    """

    def __init__(self, problem: Problem, signs: np.ndarray, done: Sequence[Evaluated], seed: int) -> None:
        self.problem, self.signs = problem, signs
        seen, values = problem.describe(genomes_of(done)), values_of(done)
        features, learned = seen.features, np.flatnonzero(np.isnan(seen.values[0]))
        names = sorted({name for evaluated in done for name in evaluated.constraints} - problem.known_constraints)
        self.objectives = {int(k): FittedSurrogate(features, values[:, k], seed) for k in learned}
        self.constraints = {name: FittedSurrogate(features, constraint_of(done, name), seed) for name in names}

    def update(self, done: Sequence[Evaluated]) -> None:
        """Learns from other trials without choosing and tuning the surrogates anew."""
        features, values = self.problem.describe(genomes_of(done)).features, values_of(done)
        for k, learned in self.objectives.items():
            learned.update(features, values[:, k])
        for name, learned in self.constraints.items():
            learned.update(features, constraint_of(done, name))

    def lows(self, genomes: np.ndarray) -> np.ndarray:
        """Least of each known objective (m,) over some genomes, to minimise; NaN where it is learned."""
        lows: np.ndarray = (self.problem.describe(genomes).values * self.signs).min(0)
        return lows

    def flattered(self, genomes: np.ndarray, optimism: float) -> tuple[np.ndarray, np.ndarray]:
        """Objectives (n, m), learned ones on their own scale and lowered by some deviations; and violations (n,)."""
        seen = self.problem.describe(genomes)
        costs, violations = seen.values * self.signs, seen.violations
        for k, learned in self.objectives.items():
            mean, deviation = learned.predict(seen.features)
            costs[:, k] = mean - optimism * deviation
        for learned in self.constraints.values():
            mean, deviation = learned.predict(seen.features)
            violations = violations + np.maximum(mean - optimism * deviation - learned.transform(np.zeros(1)), 0.0)
        return costs, violations

    def dominates(self, genomes: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Probability (n, r) that each candidate is feasible, and at least as good as each point (r, m) everywhere.

        Known constraints are the caller's to keep.
        """
        seen = self.problem.describe(genomes)
        probability = np.ones((len(genomes), len(points)))
        for k, sign in enumerate(self.signs):
            if k in self.objectives:
                probability *= self.objectives[k].probability_below(seen.features, points[:, k])
            else:
                probability *= sign * seen.values[:, k : k + 1] <= points[:, k]
        for learned in self.constraints.values():
            probability *= learned.probability_below(seen.features, np.zeros(1))
        return probability

    def reachable(self, genomes: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Those of the points (r, m) that some candidate may dominate, two deviations above its expectation."""
        costs, _ = self.flattered(genomes, 2.0)
        scaled = points.copy()
        for k, learned in self.objectives.items():
            scaled[:, k] = learned.transform(points[:, k])
        costs = costs[non_dominated(costs)]
        left = np.arange(len(points))
        for cost in costs:
            left = left[~(scaled[left] >= cost).all(axis=1)]
        found = np.ones(len(points), dtype=bool)
        found[left] = False
        return points[found]

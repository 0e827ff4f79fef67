"""Problem: what a sampler may know of a search beyond its study; Model: that, and what is learned for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from nas.encoding import Encoding, Params
from nas.ledger import Evaluated, constraint_of, genomes_of, values_of
from nas.pareto import non_dominated
from predictors.surrogate import Learned


class Problem(Protocol):
    """What a sampler may know of a search beyond its study. Genomes are those of its `Encoding`.

    Attributes:
        known_constraints: Names of the constraints that `known` accounts for; others are learned from the trials.
    """

    known_constraints: frozenset[str]

    def key(self, params: Params) -> str:
        """The same for parameters that mean the same thing, so that nothing is proposed twice."""
        ...

    def features(self, genomes: np.ndarray) -> np.ndarray:
        """Features (n, d) of genomes (n, D) for the surrogates."""
        ...

    def known(self, genomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Objectives and violations of genomes (n, D).

        Returns:
            Objectives (n, m) in the study's own directions, NaN where they must be learned; and the summed violation
            of the known constraints (n,), at most 0 where they hold.
        """
        ...


class PlainProblem:
    """Nothing is known: every objective is learned from the parameters alone."""

    known_constraints: frozenset[str] = frozenset()

    def __init__(self, encoding: Encoding, objectives: int) -> None:
        self.encoding = encoding
        self.objectives = objectives

    def key(self, params: Params) -> str:
        """The choices of the parameters that count."""
        return self.encoding.encode([params]).tobytes().hex()

    def features(self, genomes: np.ndarray) -> np.ndarray:
        """The encoding's."""
        return self.encoding.features(genomes)

    def known(self, genomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nothing."""
        return np.full((len(genomes), self.objectives), np.nan), np.zeros(len(genomes))


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
        genomes, values = genomes_of(done), values_of(done)
        features = problem.features(genomes)
        learned = np.flatnonzero(np.isnan(problem.known(genomes[:1])[0][0]))
        names = sorted({name for evaluated in done for name in evaluated.constraints} - problem.known_constraints)
        self.objectives = {int(k): Learned(features, values[:, k], seed) for k in learned}
        self.constraints = {name: Learned(features, constraint_of(done, name), seed) for name in names}

    def update(self, done: Sequence[Evaluated]) -> None:
        """Learns from other trials without choosing and tuning the surrogates anew."""
        features, values = self.problem.features(genomes_of(done)), values_of(done)
        for k, learned in self.objectives.items():
            learned.update(features, values[:, k])
        for name, learned in self.constraints.items():
            learned.update(features, constraint_of(done, name))

    def known(self, genomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Known objectives to minimise (n, m), NaN where they are learned, and known violations (n,)."""
        values, violations = self.problem.known(genomes)
        return values * self.signs, violations

    def flattered(self, genomes: np.ndarray, optimism: float) -> tuple[np.ndarray, np.ndarray]:
        """Objectives (n, m), learned ones on their own scale and lowered by some deviations; and violations (n,)."""
        costs, violations = self.known(genomes)
        features = self.problem.features(genomes)
        for k, learned in self.objectives.items():
            mean, deviation = learned.predict(features)
            costs[:, k] = mean - optimism * deviation
        for learned in self.constraints.values():
            mean, deviation = learned.predict(features)
            violations = violations + np.maximum(mean - optimism * deviation - learned.transform(np.zeros(1)), 0.0)
        return costs, violations

    def dominates(self, genomes: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Probability (n, r) that each candidate is at least as good as each point (r, m) in every objective."""
        known, features = self.known(genomes)[0], self.problem.features(genomes)
        probability = np.ones((len(genomes), len(points)))
        for k in range(points.shape[1]):
            if k in self.objectives:
                probability *= self.objectives[k].probability_below(features, points[:, k])
            else:
                probability *= known[:, k : k + 1] <= points[:, k]
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

    def chances(self, genomes: np.ndarray) -> np.ndarray:
        """Probability (n,) that the learned constraints hold."""
        features, chances = self.problem.features(genomes), np.ones(len(genomes))
        for learned in self.constraints.values():
            chances *= learned.probability_below(features, np.zeros(1))[:, 0]
        return chances

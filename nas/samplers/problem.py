"""What a sampler may know of a search beyond its study, and the surrogate model that learns the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nas.fronts.pareto import non_dominated
from nas.samplers.encoding import Encoding
from nas.samplers.trial_history import (
    FinishedTrial,
    constraint_of,
    errors_of,
    split_by_success,
    values_of,
    vectors_of,
)
from predictors.success import SuccessModel
from predictors.surrogates import FittedSurrogate, log_origin


@dataclass(frozen=True)
class Candidates:
    """What is known of points without evaluating them.

    Attributes:
        features: Features (n, d) for the surrogates.
        values: Objectives (n, m) in the directions of the study; NaN for those that must be learned.
        violations: Summed violation of the known constraints (n,), at most 0 if they hold.
    """

    features: np.ndarray
    values: np.ndarray
    violations: np.ndarray


class Problem(Protocol):
    """What a sampler may know of a search beyond its study. Vectors are those of its `Encoding`.

    Attributes:
        known_constraints: Names of the constraints that `describe` covers; others are learned from the trials.
    """

    known_constraints: frozenset[str]

    def keys(self, vectors: np.ndarray) -> list[bytes]:
        """A key for each vector (n, D), equal for those that mean the same, so that no point is proposed twice."""
        ...

    def describe(self, vectors: np.ndarray) -> Candidates:
        """All that is known of vectors (n, D)."""
        ...


class BlackBoxProblem:
    """A problem of which nothing is known: every objective is learned from the parameters."""

    known_constraints: frozenset[str] = frozenset()

    def __init__(self, encoding: Encoding, objectives: int) -> None:
        self.encoding = encoding
        self.objectives = objectives

    def keys(self, vectors: np.ndarray) -> list[bytes]:
        """The choices of the active parameters."""
        return [row.tobytes() for row in self.encoding.canonical(vectors)]

    def describe(self, vectors: np.ndarray) -> Candidates:
        """The features of the encoding, and nothing else."""
        unknown = np.full((len(vectors), self.objectives), np.nan)
        return Candidates(self.encoding.features(vectors), unknown, np.zeros(len(vectors)))


class SurrogateModel:
    """Every objective and constraint of any point: exact if known, else predicted with a standard deviation.

    If trials have failed, the probability that a point does not fail is learned too.

    Args:
        problem: What is known.
        signs: 1 for each objective that is minimised, -1 for others (m,).
        trials: Trials to learn from; at least 8 have succeeded.
        seed: Of the folds of the cross-validation.
    """

    def __init__(self, problem: Problem, signs: np.ndarray, trials: Sequence[FinishedTrial], seed: int) -> None:
        self.problem, self.signs = problem, signs
        self.success = success_model(problem, trials)
        trials = split_by_success(trials)[0]
        known, values = problem.describe(vectors_of(trials)), values_of(trials)
        features, unknown = known.features, np.flatnonzero(np.isnan(known.values[0]))
        origins = {int(k): log_origin(values[:, k]) for k in unknown}
        self._log_origins = {k: origin for k, origin in origins.items() if origin is not None}
        values, errors = self.scaled(values), self._scaled_errors(values, errors_of(trials))
        names = sorted({name for trial in trials for name in trial.constraints} - problem.known_constraints)
        self.objectives = {int(k): FittedSurrogate(features, values[:, k], seed, errors[:, k]) for k in unknown}
        self.constraints = {name: FittedSurrogate(features, constraint_of(trials, name), seed) for name in names}

    def update(self, trials: Sequence[FinishedTrial]) -> None:
        """Fits to other trials, with the surrogates and settings chosen before."""
        self.success = success_model(self.problem, trials)
        trials = split_by_success(trials)[0]
        features, values = self.problem.describe(vectors_of(trials)).features, self.scaled(values_of(trials))
        errors = self._scaled_errors(values_of(trials), errors_of(trials))
        for k, surrogate in self.objectives.items():
            surrogate.update(features, values[:, k], errors[:, k])
        for name, surrogate in self.constraints.items():
            surrogate.update(features, constraint_of(trials, name))

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Objectives (n, m), all minimised, with logarithms of learned ones that have heavy tails."""
        scaled = values.copy()
        for k, origin in self._log_origins.items():
            scaled[:, k] = np.log(np.maximum(values[:, k] - origin, np.finfo(float).tiny))
        return scaled

    def _scaled_errors(self, values: np.ndarray, errors: np.ndarray) -> np.ndarray:
        """Standard errors (n, m) on the scale of `scaled`."""
        scaled = errors.copy()
        for k, origin in self._log_origins.items():
            scaled[:, k] = errors[:, k] / (values[:, k] - origin)
        return scaled

    def lower_bounds(self, vectors: np.ndarray) -> np.ndarray:
        """Minimum of each known objective (m,) over some vectors, all minimised; NaN for those that are learned."""
        bounds: np.ndarray = (self.problem.describe(vectors).values * self.signs).min(0)
        return bounds

    def lower_confidence_bound(self, vectors: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
        """Objectives (n, m), all minimised, and violations (n,), both optimistic.

        Learned ones are on the transformed scale of their surrogate, less so many standard deviations. A point that is
        likelier to fail than to succeed is a violation.
        """
        known = self.problem.describe(vectors)
        costs, violations = known.values * self.signs, known.violations
        for k, surrogate in self.objectives.items():
            mean, deviation = surrogate.predict(known.features)
            costs[:, k] = mean - factor * deviation
        for surrogate in self.constraints.values():
            mean, deviation = surrogate.predict(known.features)
            violations = violations + np.maximum(mean - factor * deviation - surrogate.transform(np.zeros(1)), 0.0)
        if self.success is not None:
            violations = violations + np.maximum(-self.success.margin(known.features), 0.0)
        return costs, violations

    def dominates(self, vectors: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Probability (n, r) that each candidate succeeds, meets the learned constraints and weakly dominates a point.

        The points are (r, m), see `scaled`. The caller must check the known constraints.
        """
        known = self.problem.describe(vectors)
        probability = np.ones((len(vectors), len(points)))
        for k, sign in enumerate(self.signs):
            if k in self.objectives:
                probability *= self.objectives[k].probability_below(known.features, points[:, k])
            else:
                probability *= sign * known.values[:, k : k + 1] <= points[:, k]
        for surrogate in self.constraints.values():
            probability *= surrogate.probability_below(known.features, np.zeros(1))
        if self.success is not None:
            probability *= self.success.probability(known.features)[:, None]
        return probability

    def attainable(self, vectors: np.ndarray, points: np.ndarray) -> np.ndarray:
        """The points (r, m) that a candidate dominates if it is two standard deviations better than predicted.

        Both are on the scale of `scaled`.
        """
        costs, _ = self.lower_confidence_bound(vectors, 2.0)
        scaled = points.copy()
        for k, surrogate in self.objectives.items():
            scaled[:, k] = surrogate.transform(points[:, k])
        remaining = np.arange(len(points))
        for cost in costs[non_dominated(costs)]:
            remaining = remaining[~(scaled[remaining] >= cost).all(axis=1)]
        attainable = np.ones(len(points), dtype=bool)
        attainable[remaining] = False
        return points[attainable]


def success_model(problem: Problem, trials: Sequence[FinishedTrial]) -> SuccessModel | None:
    """Which points succeed; None unless trials have succeeded and others failed."""
    succeeded, failed = split_by_success(trials)
    if not (succeeded and failed):
        return None
    features = problem.describe(vectors_of([*succeeded, *failed])).features
    return SuccessModel(features, np.arange(len(features)) < len(succeeded))

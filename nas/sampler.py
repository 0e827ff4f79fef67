"""SurrogateSampler: an Optuna sampler for few, dear evaluations with several objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.nsga2 import nsga2
from nas.pareto import hypervolume, non_dominated
from predictors.surrogate import Surrogate, best_surrogate

Params = Mapping[str, Any]


class Problem(Protocol):
    """What a sampler may know of a search beyond its study.

    Attributes:
        known_constraints: Names of the constraints that `known` accounts for; others are learned from the trials.
    """

    known_constraints: frozenset[str]

    def key(self, params: Params) -> str:
        """The same for parameters that mean the same thing, so that nothing is proposed twice."""
        ...

    def features(self, params: Sequence[Params]) -> np.ndarray:
        """Features (n, d) for the surrogates."""
        ...

    def known(self, params: Sequence[Params]) -> tuple[np.ndarray, np.ndarray]:
        """Objectives (n, m) in the study's own directions, NaN where they must be learned, and the summed violation
        of the known constraints (n,), at most 0 where they hold."""
        ...


class PlainProblem:
    """Nothing is known: every objective is learned from the parameters alone."""

    known_constraints: frozenset[str] = frozenset()

    def __init__(self, space: Mapping[str, BaseDistribution], objectives: int) -> None:
        self.choices = {name: choices_of(distribution) for name, distribution in space.items()}
        self.objectives = objectives

    def key(self, params: Params) -> str:
        """The parameters themselves."""
        return repr([params[name] for name in self.choices])

    def features(self, params: Sequence[Params]) -> np.ndarray:
        """Numbers scaled to [0, 1]; one column a choice where choices are not numbers."""
        columns = []
        for name, choices in self.choices.items():
            index = np.array([choices.index(p[name]) for p in params])
            if all(isinstance(choice, int | float) for choice in choices):
                values = np.array(choices, dtype=float)
                columns.append((values[index] - values.min())[:, None] / (np.ptp(values) or 1.0))
            else:
                columns.append(np.eye(len(choices))[index])
        return np.concatenate(columns, axis=1)

    def known(self, params: Sequence[Params]) -> tuple[np.ndarray, np.ndarray]:
        """Nothing."""
        return np.full((len(params), self.objectives), np.nan), np.zeros(len(params))


class SurrogateSampler(BaseSampler):
    """Proposes what a learned model expects to enlarge the dominated hypervolume most.

    What is not known is learned: for each such objective, the surrogate that cross-validates best on the finished
    trials. NSGA-II then searches thousands of predicted candidates, optimistic by a varying number of standard
    deviations, and a batch is chosen greedily by the hypervolume it adds to the front and to itself. Constraints that
    are not known are learned from the trials in the same way.

    Everything is derived from the finished trials of the study and the seed: a new sampler over the same study goes
    on as the old one would have, and any number of trials may run at once.

    Args:
        space: The parameters: integers and categoricals.
        problem: What is known beyond the study; by default nothing.
        n_startup_trials: Random proposals before the first model.
        batch_size: Proposals between two fits.
        seed: Source of all randomness.

    Example:
        >>> space = {f"x{i}": IntDistribution(0, 7) for i in range(10)}
        >>> study = optuna.create_study(directions=["minimize"] * 2, sampler=SurrogateSampler(space, seed=0))
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        problem: Problem | None = None,
        *,
        n_startup_trials: int = 20,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        self.space = dict(space)
        self.choices = [choices_of(distribution) for distribution in self.space.values()]
        self.problem = problem
        self.n_startup_trials = n_startup_trials
        self.batch_size = batch_size
        self.seed = seed
        self._batch: list[dict[str, Any]] = []
        self._batch_number = -1

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space, always."""
        return self.space

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        """A random value, for a parameter that is not in the space."""
        random = RandomSampler(seed=self.seed + trial.number)
        return random.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        """The next proposal that no trial has had yet."""
        problem = self.problem or PlainProblem(self.space, len(study.directions))
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
        taken = {problem.key(t.params) for t in trials if self.space.keys() <= t.params.keys()}
        done = [t for t in trials if t.state == TrialState.COMPLETE and self.space.keys() <= t.params.keys()]
        batch_number = len(done) // self.batch_size
        if batch_number != self._batch_number:
            used = done[: batch_number * self.batch_size]
            rng = np.random.default_rng((self.seed, batch_number))
            self._batch = self._propose(study, problem, used, rng) if len(used) >= self.n_startup_trials else []
            self._batch_number = batch_number
        rng = np.random.default_rng((self.seed, len(done), len(trials)))
        fresh = (params for params in self._batch if problem.key(params) not in taken)
        return next(fresh, None) or self._random(problem, taken, rng)

    def _random(self, problem: Problem, taken: set[str], rng: np.random.Generator) -> dict[str, Any]:
        """A random point that is new and feasible as far as is known, if one turns up."""
        found = self._decode(rng.integers(0, self._cardinalities, (256, len(self.choices))))
        violation = problem.known(found)[1]
        order = sorted(range(len(found)), key=lambda i: (problem.key(found[i]) in taken, max(violation[i], 0.0)))
        return found[order[0]]

    def _propose(
        self, study: Study, problem: Problem, trials: Sequence[FrozenTrial], rng: np.random.Generator
    ) -> list[dict[str, Any]]:
        """One batch from a fit on some finished trials."""
        signs = np.array([1.0 if d == StudyDirection.MINIMIZE else -1.0 for d in study.directions])
        params = [trial.params for trial in trials]
        observed = np.array([trial.values for trial in trials]) * signs
        feasible = np.array([all(v <= 0 for v in trial.constraints.values()) for trial in trials])
        features = problem.features(params)
        learned = np.flatnonzero(np.isnan(problem.known(params[:1])[0][0]))
        models = {int(k): best_surrogate(features, observed[:, k], self.seed) for k in learned}
        names = {name for trial in trials for name in trial.constraints} - problem.known_constraints
        missed = {name: np.array([trial.constraints.get(name, 0.0) for trial in trials]) for name in sorted(names)}
        bounds = [(best_surrogate(features, v, self.seed), v.std() or 1.0) for v in missed.values()]
        predict = _Prediction(problem, signs, models, bounds, self, rng.choice([0.0, 0.5, 1.0]))
        front = observed[feasible][non_dominated(observed[feasible])] if feasible.any() else observed[:0]
        start = self._encode([p for p, ok in zip(params, feasible, strict=True) if ok] or params)
        genomes, costs, violations = nsga2(predict, self._cardinalities, start=start[-200:], rng=rng)
        seen = {problem.key(p) for p in params}
        return self._choose(problem, genomes, costs, violations, front, seen)

    def _choose(
        self,
        problem: Problem,
        genomes: np.ndarray,
        costs: np.ndarray,
        violations: np.ndarray,
        front: np.ndarray,
        seen: set[str],
    ) -> list[dict[str, Any]]:
        """New feasible candidates on the predicted front, greedily by the hypervolume each adds.

        Where nothing is predicted to be feasible, the candidates closest to it.
        """
        good = np.flatnonzero(violations <= 0)
        if not len(good):
            closest = self._decode(genomes[np.argsort(violations, kind="stable")])
            return [p for p in closest if problem.key(p) not in seen][: self.batch_size]
        candidates: dict[str, tuple[dict[str, Any], np.ndarray]] = {}
        while len(good) and len(candidates) < 2 * self.batch_size:
            best = non_dominated(costs[good])
            for genome, cost in zip(genomes[good[best]], costs[good[best]], strict=True):
                params = self._decode(genome[None])[0]
                if problem.key(params) not in seen:
                    candidates.setdefault(problem.key(params), (params, cost))
            good = good[~best]
        pool = list(candidates.values())
        values = np.array([cost for _, cost in pool]).reshape(len(pool), costs.shape[1])
        return [pool[i][0] for i in greedy_batch(values, front, self.batch_size)]

    @property
    def _cardinalities(self) -> np.ndarray:
        return np.array([len(choices) for choices in self.choices])

    def _decode(self, genomes: np.ndarray) -> list[dict[str, Any]]:
        names = list(self.space)
        return [{n: self.choices[k][g] for k, (n, g) in enumerate(zip(names, row, strict=True))} for row in genomes]

    def _encode(self, params: Sequence[Params]) -> np.ndarray:
        names = list(self.space)
        return np.array([[self.choices[k].index(p[name]) for k, name in enumerate(names)] for p in params])


@dataclass(frozen=True)
class _Prediction:
    """Costs and violations of genomes: known ones exactly, learned ones by their surrogate."""

    problem: Problem
    signs: np.ndarray
    models: Mapping[int, Surrogate]
    bounds: Sequence[tuple[Surrogate, float]]
    sampler: SurrogateSampler
    optimism: float

    def __call__(self, genomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        params = self.sampler._decode(genomes)
        known, violations = self.problem.known(params)
        costs = known * self.signs
        features = self.problem.features(params)
        for k, model in self.models.items():
            mean, deviation = model.predict(features)
            costs[:, k] = mean - self.optimism * deviation
        for model, scale in self.bounds:
            violations = violations + np.maximum(model.predict(features)[0], 0.0) / scale
        return costs, violations


def greedy_batch(candidates: np.ndarray, front: np.ndarray, size: int) -> list[int]:
    """Indices of candidates (n, m) to minimise, each adding the most hypervolume to the front and those before it."""
    if not len(candidates):
        return []
    everything = np.concatenate([front, candidates])
    low, width = everything.min(0), np.maximum(np.ptp(everything, axis=0), 1e-12)
    reference = np.full(everything.shape[1], 1.1)
    chosen: list[int] = []
    have = (front - low) / width
    scaled = (candidates - low) / width
    while len(chosen) < min(size, len(candidates)):
        base = hypervolume(have, reference)
        left = [i for i in range(len(candidates)) if i not in chosen]
        gains = [hypervolume(np.concatenate([have, scaled[i : i + 1]]), reference) - base for i in left]
        best = left[int(np.argmax(gains))]
        chosen.append(best)
        have = np.concatenate([have, scaled[best : best + 1]])
        have = have[non_dominated(have)]
    return chosen


def choices_of(distribution: BaseDistribution) -> list[Any]:
    """The values of an integer or categorical parameter, in order."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    raise ValueError(f"`SurrogateSampler` needs integer and categorical parameters, but got {distribution}.")

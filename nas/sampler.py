"""SurrogateSampler: an Optuna sampler for few, dear evaluations with several objectives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from nas.encoding import Conditions, Encoding, Params
from nas.ledger import Evaluated, Ledger
from nas.proposals import Model, Problem, propose

LEARNED_FROM = 400
"""Most trials that a model is fitted to, so that a proposal never costs more in a long search."""
GROWTH = 1.5
"""Surrogates are chosen and tuned anew whenever there are so many times as many trials as the last time."""


class PlainProblem:
    """Nothing is known: every objective is learned from the parameters alone."""

    known_constraints: frozenset[str] = frozenset()

    def __init__(self, encoding: Encoding, objectives: int) -> None:
        self.encoding = encoding
        self.objectives = objectives

    def key(self, params: Params) -> str:
        """The parameters that count."""
        return self.encoding.encode([params]).tobytes().hex()

    def features(self, genomes: np.ndarray) -> np.ndarray:
        """The encoding's."""
        return self.encoding.features(genomes)

    def known(self, genomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nothing."""
        return np.full((len(genomes), self.objectives), np.nan), np.zeros(len(genomes))


class SurrogateSampler(BaseSampler):
    """Proposes what a learned model expects to enlarge the dominated hypervolume most."""

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        problem: Problem | None = None,
        *,
        conditions: Conditions | None = None,
        n_startup_trials: int = 10,
        batch_size: int = 4,
        seed: int = 0,
    ) -> None:
        self.space = dict(space)
        self.encoding = Encoding(self.space, conditions)
        self.problem = problem
        self.n_startup_trials = n_startup_trials
        self.batch_size = batch_size
        self.seed = seed
        self._ledger: Ledger | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space, always."""
        return self.space

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        """A random value, for a parameter that is not in the space."""
        random = RandomSampler(seed=self.seed + trial.number)
        return random.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        """The next proposal that no trial has had yet."""
        problem = self.problem or PlainProblem(self.encoding, len(study.directions))
        if self._ledger is None or self._ledger.study_name != study.study_name:
            self._ledger = Ledger(study, self.encoding, problem.key)
            self._tuned, self._boundary = 0, -1
        ledger = self._ledger
        ledger.read(study)
        boundaries = list(takewhile(lambda b: b <= len(ledger.done), self._boundaries()))
        boundary = boundaries[-1] if boundaries else 0
        if boundary != self._boundary:
            self._boundary = boundary
            self._queue = []
            self._more = self._batch(study, problem, boundaries) if boundary else self._startup(problem)
        for params in self._queue:
            if not ledger.taken(problem.key(params)):
                return params
        for params in self._more:
            self._queue.append(params)
            if not ledger.taken(problem.key(params)):
                return params
        return self._random(problem, len(ledger.done))

    def _boundaries(self) -> Iterator[int]:
        """Numbers of finished trials at which a model is fitted."""
        boundary = self.n_startup_trials
        while True:
            yield boundary
            boundary += max(self.batch_size, boundary // 10)

    def _startup(self, problem: Problem) -> Iterator[dict[str, Any]]:
        """Random points, every other one near the diagonal: all ordered parameters at about the same level."""
        rng = np.random.default_rng((self.seed, 0))
        while True:
            genomes = rng.integers(0, self.encoding.cardinalities, (64, len(self.encoding.names)))
            level = rng.random((64, 1)) + rng.normal(0, 0.15, genomes.shape)
            near = np.clip(np.floor(level * self.encoding.cardinalities), 0, self.encoding.cardinalities - 1)
            diagonal = (np.arange(64) % 2 == 1)[:, None] & self.encoding.ordered
            genomes = self.encoding.canonical(np.where(diagonal, near, genomes).astype(np.int64))
            params = self.encoding.decode(genomes)
            violations = problem.known(genomes)[1]
            yield from (params[i] for i in np.argsort(np.maximum(violations, 0), kind="stable"))

    def _random(self, problem: Problem, number: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, number, 1))
        found = self.encoding.decode(rng.integers(0, self.encoding.cardinalities, (256, len(self.encoding.names))))
        return found[0]

    def _batch(self, study: Study, problem: Problem, boundaries: Sequence[int]) -> Iterator[dict[str, Any]]:
        done = self._ledger.done
        tuned = boundaries[0]
        for b in boundaries:
            if b >= GROWTH * tuned:
                tuned = b
        signs = np.array([1.0 if d == StudyDirection.MINIMIZE else -1.0 for d in study.directions])
        if tuned != self._tuned:
            self._model = Model(problem, signs, representative(done[:tuned], LEARNED_FROM), self.seed)
            self._tuned = tuned
        used = done[: boundaries[-1]]
        self._model.update(representative(used, LEARNED_FROM))
        rng = np.random.default_rng((self.seed, boundaries[-1]))
        running = list(self._ledger.running.values())
        return propose(self._model, self.encoding, used, running, self._ledger.taken, rng)


def representative(done: Sequence[Evaluated], size: int) -> Sequence[Evaluated]:
    """At most so many: the latest half, which a search has made the best, and others spread over the rest."""
    if len(done) <= size:
        return done
    late = size // 2
    spread = np.linspace(0, len(done) - late - 1, size - late).round().astype(int)
    return [*(done[i] for i in spread), *done[-late:]]

"""SurrogateSampler: an Optuna sampler for few, dear evaluations with several objectives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from threading import Lock
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from nas.samplers.encoding import Conditions, Encoding
from nas.samplers.problem import Model, PlainProblem, Problem
from nas.samplers.proposals import propose
from nas.samplers.trial_history import Evaluated, Ledger

FEWEST = 8
"""Trials that a surrogate can be cross-validated on."""
LEARNED_FROM = 400
"""Most trials that a model is fitted to, so that a proposal never costs more in a long search."""
GROWTH = 1.5
"""Surrogates are chosen and tuned anew whenever there are so many times as many trials as the last time."""
SCATTER = 0.15
"""Standard deviation of startup points from the diagonal, as a share of a parameter's range."""
MOST_TRIED = 1000
"""Proposals looked at for one that is new."""


class SurrogateSampler(BaseSampler):
    """Proposes what a learned model expects to enlarge the dominated hypervolume most.

    What is not known is learned: for each such objective or constraint, the surrogate that cross-validates best on
    the finished trials. NSGA-II searches some ten thousand predicted candidates, and trials are proposed in the order
    of what each is expected to add to the hypervolume of the front, of those before it and of those that are running.

    Everything follows from the finished trials of the study and the seed: a new sampler over the same study goes on
    as the old one would have. Any number of trials may run at once, in threads or elsewhere: while some do, models are
    fitted beside them and a trial is asked for at once, from the model before. A trial that failed may be proposed
    once more.

    Args:
        space: The parameters: integers and categoricals.
        problem: What is known beyond the study; by default nothing.
        conditions: Parameters that only count with certain values of others.
        n_startup_trials: Finished trials before the first model, at least 8.
        batch_size: Finished trials between two models; more where more run at once, and a tenth of all in a long
            search.
        seed: Source of all randomness.

    Raises:
        ValueError: If a parameter is neither an integer nor a categorical, or `n_startup_trials` is below 8.

    Examples:
        >>> space = {f"x{i}": IntDistribution(0, 7) for i in range(10)}
        >>> study = optuna.create_study(directions=["minimize"] * 2, sampler=SurrogateSampler(space, seed=0))
    """

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
        if n_startup_trials < FEWEST:
            raise ValueError(f"`n_startup_trials` must be at least {FEWEST}, but got {n_startup_trials}.")
        self.space = dict(space)
        self.encoding = Encoding(self.space, conditions)
        self.problem = problem
        self.n_startup_trials = n_startup_trials
        self.batch_size = batch_size
        self.seed = seed
        self._forget()

    def _forget(self) -> None:
        self._lock = Lock()
        self._at_work: _Search | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_at_work")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space, always."""
        return self.space

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        """A random value, for a parameter that is not in the space."""
        random = RandomSampler(seed=self.seed + trial.number)
        return random.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        """The next proposal that no trial has had yet; nothing for a trial that was enqueued with all parameters."""
        if self.encoding.accepts(trial.system_attrs.get("fixed_params", {})):
            return {}
        with self._lock:
            if self._at_work is None or self._at_work.ledger.study_name != study.study_name:
                self._at_work = _Search(self, study)
            return self._at_work.next(study, trial.number)

    def boundaries(self) -> Iterator[int]:
        """Numbers of finished trials at which a model is fitted."""
        boundary = self.n_startup_trials
        while True:
            yield boundary
            boundary += max(self.batch_size, boundary // 10)


class _Search:
    """What a sampler remembers of one study, all of which could be had again from the study."""

    def __init__(self, sampler: SurrogateSampler, study: Study) -> None:
        self.encoding, self.seed = sampler.encoding, sampler.seed
        self.problem = sampler.problem or PlainProblem(sampler.encoding, len(study.directions))
        self.ledger = Ledger(study, self.encoding, self.problem.keys)
        self._boundaries = sampler.boundaries()
        self._boundary, self._next_boundary = 0, next(self._boundaries)
        self._tuned = 0
        self._model: Model | None = None
        self._thread = ThreadPoolExecutor(1, "surrogate")
        self._thinking: Future[Iterator[dict[str, Any]]] | None = None
        self._offer(self._startup())

    def next(self, study: Study, number: int) -> dict[str, Any]:
        """Parameters for a trial; known ones only where nothing new turns up."""
        self.ledger.read(study)
        self._think()
        params = next((params for key, params in self._offered if not self.ledger.taken(key)), None) or self._draw()
        self.ledger.hand_out(number, params)
        return params

    def _think(self) -> None:
        """Fits a model once enough trials have finished; waits for it only where no other trial runs."""
        due = max(self._next_boundary, self._boundary + len(self.ledger.running))
        if self._thinking is None and due <= len(self.ledger.done):
            running = self.encoding.encode(list(self.ledger.running.values()))
            self._thinking = self._thread.submit(self._batch, list(self.ledger.done), running)
        if self._thinking is not None and (self._thinking.done() or not self.ledger.running):
            self._offer(self._thinking.result())
            self._thinking = None

    def _draw(self) -> dict[str, Any]:
        """The next proposal that is new; after many that are not, as in a small space, the last of them."""
        for params in islice(self._more, MOST_TRIED):
            key = self.ledger.key(params)
            self._offered.append((key, params))
            if not self.ledger.taken(key):
                break
        return params

    def _offer(self, proposals: Iterator[dict[str, Any]]) -> None:
        """Proposals from now on; random ones follow them. Those drawn so far are kept: a failed one may come again."""
        self._offered: list[tuple[bytes, dict[str, Any]]] = []
        self._more = chain(proposals, self._random(self._boundary, 1))

    def _startup(self) -> Iterator[dict[str, Any]]:
        """Random points, every other one near the diagonal: all ordered parameters at about the same level.

        Of every 64, those that known constraints rule out come last.
        """
        rng = np.random.default_rng((self.seed, 0))
        most = self.encoding.cardinalities
        while True:
            genomes = rng.integers(0, most, (64, len(most)))
            level = rng.random((64, 1)) + rng.normal(0, SCATTER, genomes.shape)
            near = np.clip(np.floor(level * most), 0, most - 1).astype(np.int64)
            diagonal = (np.arange(64) % 2 == 1)[:, None] & self.encoding.ordered
            genomes = self.encoding.canonical(np.where(diagonal, near, genomes))
            missed = np.maximum(self.problem.describe(genomes).violations, 0.0)
            yield from self.encoding.decode(genomes[np.argsort(missed, kind="stable")])

    def _random(self, *seed: int) -> Iterator[dict[str, Any]]:
        """Random points."""
        rng = np.random.default_rng((self.seed, *seed))
        while True:
            genomes = rng.integers(0, self.encoding.cardinalities, (64, len(self.encoding.names)))
            yield from self.encoding.decode(self.encoding.canonical(genomes))

    def _batch(self, done: Sequence[Evaluated], running: np.ndarray) -> Iterator[dict[str, Any]]:
        """Proposals of a model of all trials up to the last boundary, beside the genomes that are running."""
        tuned = self._tuned
        boundary, following = self._boundary, self._next_boundary
        while following <= len(done):
            boundary, following = following, next(self._boundaries)
            if boundary >= GROWTH * tuned:
                tuned = boundary
        if self._model is None or tuned != self._tuned:
            self._tuned = tuned
            self._model = Model(self.problem, self.ledger.signs, representative(done[:tuned], LEARNED_FROM), self.seed)
        used = done[:boundary]
        self._model.update(representative(used, LEARNED_FROM))
        found = propose(self._model, self.encoding, used, running, np.random.default_rng((self.seed, boundary)))
        self._boundary, self._next_boundary = boundary, following
        return found


def representative(done: Sequence[Evaluated], size: int) -> Sequence[Evaluated]:
    """At most so many: the latest half, which a search has made the best, and others spread over the rest."""
    if len(done) <= size:
        return done
    late = size // 2
    spread = np.linspace(0, len(done) - late - 1, size - late).round().astype(int)
    return [*(done[i] for i in spread), *done[-late:]]

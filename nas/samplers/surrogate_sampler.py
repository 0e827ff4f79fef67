"""SurrogateSampler: an Optuna sampler for few, expensive evaluations with several objectives."""

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
from nas.samplers.problem import BlackBoxProblem, Problem, SurrogateModel, success_model
from nas.samplers.proposals import propose
from nas.samplers.trial_history import FinishedTrial, TrialHistory, split_by_success
from predictors.success import SuccessModel

MIN_TRIALS = 8
"""Fewest trials that a surrogate can be cross-validated on."""
MAX_TRIALS = 400
"""Most trials that a model is fitted to, which bounds the time of a proposal in a long search."""
RETUNE_FACTOR = 1.5
"""Surrogates are chosen and tuned again once the number of trials has grown by this factor."""
DIAGONAL_STD = 0.15
"""Standard deviation of startup points from the diagonal, as a share of the range of a parameter."""
MAX_REJECTED = 1000
"""Proposals that are tried for one that is new."""


class SurrogateSampler(BaseSampler):
    """Proposes the points from which a surrogate model expects the largest improvement of the hypervolume.

    Each objective or constraint that is not known is learned, by the surrogate that cross-validates best on the
    finished trials. NSGA-II searches about ten thousand predicted candidates. They are proposed in the order in which
    each adds most to the expected hypervolume of the front, the running trials and the proposals before it.

    The proposals depend only on the finished trials of the study and the seed: a new sampler over the same study
    continues as the old one would have. Any number of trials may run at once, in threads or on other machines. While
    some run, models are fitted in a background thread, and a new trial comes from the previous model without waiting.
    A trial may state the standard errors of its objectives as the user attribute ``standard_errors``; the surrogates
    take them for noise. Which points fail is learned too: none is proposed that is likelier to fail than to succeed,
    unless all are.

    Args:
        space: The parameters: integers and categoricals.
        problem: What is known beyond the study; by default nothing.
        conditions: Parameters that are active only with certain values of others.
        n_startup_trials: Finished trials before the first model, at least 8.
        batch_size: Finished trials between two models; at least the number of running trials, and a tenth of all
            trials in a long search.
        seed: Seed of all random numbers.

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
        if n_startup_trials < MIN_TRIALS:
            raise ValueError(f"`n_startup_trials` must be at least {MIN_TRIALS}, but got {n_startup_trials}.")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a whole number of at least 1, but got {batch_size!r}.")
        self.space = dict(space)
        self.encoding = Encoding(self.space, conditions)
        self.problem = problem
        self.n_startup_trials = n_startup_trials
        self.batch_size = batch_size
        self.seed = seed
        self._reset()

    def _reset(self) -> None:
        self._lock = Lock()
        self._state: _SamplerState | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_state")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space, always."""
        return self.space

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        """A random value for a parameter that is not in the space."""
        random = RandomSampler(seed=self.seed + trial.number)
        return random.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        """The next proposal that no trial has; nothing for a trial that was enqueued with all parameters."""
        if self.encoding.accepts(trial.system_attrs.get("fixed_params", {})):
            return {}
        with self._lock:
            if self._state is None or self._state.history.study_name != study.study_name:
                self._state = _SamplerState(self, study)
            return self._state.next(study, trial.number)

    def fit_schedule(self) -> Iterator[int]:
        """Numbers of finished trials at which a model is fitted."""
        n_trials = self.n_startup_trials
        while True:
            yield n_trials
            n_trials += max(self.batch_size, n_trials // 10)


class _SamplerState:
    """State of a sampler in one study; it could be rebuilt from the study."""

    def __init__(self, sampler: SurrogateSampler, study: Study) -> None:
        self.encoding, self.seed = sampler.encoding, sampler.seed
        self.problem = sampler.problem or BlackBoxProblem(sampler.encoding, len(study.directions))
        self.history = TrialHistory(study, self.encoding, self.problem.keys)
        self._schedule = sampler.fit_schedule()
        self._n_fitted, self._next_fit = 0, next(self._schedule)
        self._n_tuned = 0
        self._success: SuccessModel | None = None
        self._n_success_learned = 0
        self._model: SurrogateModel | None = None
        self._executor = ThreadPoolExecutor(1, "surrogate")
        self._refit_future: Future[Iterator[dict[str, Any]]] | None = None
        self._set_proposals(self._startup())

    def next(self, study: Study, number: int) -> dict[str, Any]:
        """Parameters for a trial: new ones, unless none is found."""
        self.history.read(study)
        self._maybe_refit()
        self._learn_success()
        drawn = (params for key, params in self._drawn if self._is_wanted(key, params))
        params = next(drawn, None) or self._next_new()
        self.history.mark_running(number, params)
        return params

    def _maybe_refit(self) -> None:
        """Starts a fit once enough trials are finished; waits for its end only if no other trial runs."""
        due = max(self._next_fit, self._n_fitted + len(self.history.running))
        if self._refit_future is None and due <= len(self.history.finished):
            running = self.encoding.encode(list(self.history.running.values()))
            self._refit_future = self._executor.submit(self._fit_and_propose, list(self.history.finished), running)
        if self._refit_future is not None and (self._refit_future.done() or not self.history.running):
            self._set_proposals(self._refit_future.result())
            self._refit_future = None

    def _next_new(self) -> dict[str, Any]:
        """The next proposal that is new and may succeed; if many are not, one that is new, or any in a small space."""
        for params in islice(self._proposals, MAX_REJECTED):
            key = self.history.key(params)
            self._drawn.append((key, params))
            if self._is_wanted(key, params):
                return params
        return next((params for key, params in self._drawn if not self.history.is_taken(key)), params)

    def _is_wanted(self, key: bytes, params: dict[str, Any]) -> bool:
        """Whether a point is new, and not likelier to fail than to succeed."""
        if self.history.is_taken(key) or self._success is None:
            return not self.history.is_taken(key)
        features = self.problem.describe(self.encoding.encode([params])).features
        return bool(self._success.margin(features)[0] >= 0)

    def _learn_success(self) -> None:
        """Learns which points fail from the trials up to the last that failed, each time that another one has."""
        finished = self.history.finished
        n_trials = max((i for i, trial in enumerate(finished, 1) if trial.failed), default=0)
        if n_trials != self._n_success_learned:
            self._n_success_learned = n_trials
            self._success = success_model(self.problem, representative_trials(finished[:n_trials], MAX_TRIALS))

    def _set_proposals(self, proposals: Iterator[dict[str, Any]]) -> None:
        """Replaces the proposals; random ones follow them. Drawn ones are kept, as one that fails may come again."""
        self._drawn: list[tuple[bytes, dict[str, Any]]] = []
        self._proposals = chain(proposals, self._random(self._n_fitted, 1))

    def _startup(self) -> Iterator[dict[str, Any]]:
        """Random points, every second one near the diagonal: all ordered parameters at about the same level.

        Of every 64, those that miss known constraints come last.
        """
        rng = np.random.default_rng((self.seed, 0))
        cardinalities = self.encoding.cardinalities
        while True:
            vectors = rng.integers(0, cardinalities, (64, len(cardinalities)))
            level = rng.random((64, 1)) + rng.normal(0, DIAGONAL_STD, vectors.shape)
            near = np.clip(np.floor(level * cardinalities), 0, cardinalities - 1).astype(np.int64)
            diagonal = (np.arange(64) % 2 == 1)[:, None] & self.encoding.ordered
            vectors = self.encoding.canonical(np.where(diagonal, near, vectors))
            violations = np.maximum(self.problem.describe(vectors).violations, 0.0)
            yield from self.encoding.decode(vectors[np.argsort(violations, kind="stable")])

    def _random(self, *seed: int) -> Iterator[dict[str, Any]]:
        """Random points."""
        rng = np.random.default_rng((self.seed, *seed))
        while True:
            vectors = rng.integers(0, self.encoding.cardinalities, (64, len(self.encoding.names)))
            yield from self.encoding.decode(self.encoding.canonical(vectors))

    def _fit_and_propose(self, finished: Sequence[FinishedTrial], running: np.ndarray) -> Iterator[dict[str, Any]]:
        """Fits the model that the schedule asks for, and its proposals, given the vectors that are running (p, D)."""
        n_tuned = self._n_tuned
        n_fitted, next_fit = self._n_fitted, self._next_fit
        while next_fit <= len(finished):
            n_trials, next_fit = next_fit, next(self._schedule)
            if len(split_by_success(finished[:n_trials])[0]) < MIN_TRIALS:
                continue
            n_fitted = n_trials
            if n_fitted >= RETUNE_FACTOR * n_tuned:
                n_tuned = n_fitted
        if not n_fitted:
            self._next_fit = next_fit
            return self._startup()
        if self._model is None or n_tuned != self._n_tuned:
            self._n_tuned = n_tuned
            chosen = representative_trials(finished[:n_tuned], MAX_TRIALS)
            self._model = SurrogateModel(self.problem, self.history.signs, chosen, self.seed)
        trials = finished[:n_fitted]
        self._model.update(representative_trials(trials, MAX_TRIALS))
        proposals = propose(self._model, self.encoding, trials, running, np.random.default_rng((self.seed, n_fitted)))
        self._n_fitted, self._next_fit = n_fitted, next_fit
        return proposals


def representative_trials(trials: Sequence[FinishedTrial], size: int) -> Sequence[FinishedTrial]:
    """At most so many that succeeded, and as many that failed.

    Half of them are the latest, which a search has made the best, the others evenly from the rest.
    """
    return [trial for part in split_by_success(trials) for trial in _at_most(part, size)]


def _at_most(trials: Sequence[FinishedTrial], size: int) -> Sequence[FinishedTrial]:
    if len(trials) <= size:
        return trials
    n_latest = size // 2
    even = np.linspace(0, len(trials) - n_latest - 1, size - n_latest).round().astype(int)
    return [*(trials[i] for i in even), *trials[-n_latest:]]

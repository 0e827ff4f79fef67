"""History of a study: its finished and running trials, each finished trial read once."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.samplers.encoding import Encoding, Params

STANDARD_ERRORS = "standard_errors"
"""User attribute of a trial: the standard errors of its objectives, in their order; 0 for what is exact."""


@dataclass(frozen=True)
class FinishedTrial:
    """A trial that is complete or has failed.

    Attributes:
        number: Of the trial.
        key: Of its point.
        vector: Its parameters (D,), see `Encoding`.
        values: Its objectives (m,), all minimised; not all finite if it has failed.
        constraints: Name -> value, at most 0 if the constraint holds.
        errors: Standard errors of the objectives (m,); 0 where they are not known.
    """

    number: int
    key: bytes
    vector: np.ndarray
    values: np.ndarray
    constraints: Mapping[str, float]
    errors: np.ndarray

    @property
    def failed(self) -> bool:
        """Whether it has no values to learn from."""
        return not np.isfinite(self.values).all()

    @property
    def feasible(self) -> bool:
        """Whether all constraints hold."""
        return all(value <= 0 for value in self.constraints.values())


class TrialHistory:
    """Finished trials in order, and the points that finished or running trials have.

    A finished trial never changes, so the cost of reading depends only on the new ones.

    Args:
        study: The study.
        encoding: The space; trials of another space are ignored.
        keys: Vectors (n, D) -> a key for each, equal for those that mean the same.

    Attributes:
        study_name: Of the study.
        finished: Finished trials by number.
        running: Number -> parameters of each running trial.
        signs: 1 for each objective that is minimised, -1 for others (m,).
    """

    def __init__(self, study: Study, encoding: Encoding, keys: Callable[[np.ndarray], list[bytes]]) -> None:
        self.study_name = study.study_name
        self.finished: list[FinishedTrial] = []
        self.running: dict[int, Params] = {}
        self.signs = np.array([1.0 if d == StudyDirection.MINIMIZE else -1.0 for d in study.directions])
        self._encoding, self._keys = encoding, keys
        self._n_read = 0
        self._unfinished: list[int] = []
        self._finished_keys: set[bytes] = set()
        self._running_keys: set[bytes] = set()

    def read(self, study: Study) -> None:
        """Reads the trials of the study that are new or were unfinished at the last call."""
        all_trials = study.get_trials(deepcopy=False)
        trials = [all_trials[number] for number in self._unfinished] + all_trials[self._n_read :]
        self._n_read = len(all_trials)
        unfinished = [trial for trial in trials if not trial.state.is_finished()]
        self._unfinished = [trial.number for trial in unfinished]
        marked = {number: self.running[number] for number in self._unfinished if number in self.running}
        stored = {t.number: dict(t.params) for t in unfinished if t.state == TrialState.RUNNING and self._is_point(t)}
        self.running = {**marked, **stored}
        self._running_keys = {self.key(params) for params in self.running.values()}
        for trial in trials:
            if trial.state.is_finished() and self._is_point(trial):
                self._add(trial)

    def mark_running(self, number: int, params: Params) -> None:
        """Records the parameters that a trial is about to get, before the study stores them."""
        self.running[number] = params
        self._running_keys.add(self.key(params))

    def key(self, params: Params) -> bytes:
        """The key of parameters, equal for those that mean the same."""
        return self._keys(self._encoding.encode([params]))[0]

    def is_taken(self, key: bytes) -> bool:
        """Whether a point is evaluated or being evaluated, or has failed."""
        return key in self._finished_keys or key in self._running_keys

    def _is_point(self, trial: FrozenTrial) -> bool:
        return self._encoding.accepts(trial.params)

    def _add(self, trial: FrozenTrial) -> None:
        key = self.key(trial.params)
        self._finished_keys.add(key)
        if trial.state == TrialState.PRUNED:
            return
        values = self.signs * (trial.values if trial.state == TrialState.COMPLETE else np.nan)
        vector = self._encoding.encode([trial.params])[0]
        errors = np.array(trial.user_attrs.get(STANDARD_ERRORS, np.zeros(len(self.signs))))
        finished = FinishedTrial(trial.number, key, vector, values, dict(trial.constraints), errors)
        insort(self.finished, finished, key=attrgetter("number"))


def split_by_success(trials: Sequence[FinishedTrial]) -> tuple[list[FinishedTrial], list[FinishedTrial]]:
    """The trials that succeeded, and those that failed on points where no other succeeded."""
    succeeded = [trial for trial in trials if not trial.failed]
    keys = {trial.key for trial in succeeded}
    return succeeded, [trial for trial in trials if trial.failed and trial.key not in keys]


def vectors_of(trials: Sequence[FinishedTrial]) -> np.ndarray:
    """Vectors (n, D)."""
    return np.array([trial.vector for trial in trials])


def values_of(trials: Sequence[FinishedTrial]) -> np.ndarray:
    """Objectives (n, m), all minimised."""
    return np.array([trial.values for trial in trials])


def errors_of(trials: Sequence[FinishedTrial]) -> np.ndarray:
    """Standard errors of the objectives (n, m)."""
    return np.array([trial.errors for trial in trials])


def constraint_of(trials: Sequence[FinishedTrial], name: str) -> np.ndarray:
    """One constraint (n,); 0 for a trial that did not set it."""
    return np.array([trial.constraints.get(name, 0.0) for trial in trials])

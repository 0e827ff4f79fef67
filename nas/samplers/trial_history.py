"""Ledger: what a study has evaluated, each trial read once."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.samplers.encoding import Encoding, Params

ATTEMPTS = 2
"""A failed evaluation may be proposed so many times in all."""


@dataclass(frozen=True)
class Evaluated:
    """One finished trial: number, key, genome (D,), values to minimise (m,), constraints that hold where at most 0."""

    number: int
    key: bytes
    genome: np.ndarray
    values: np.ndarray
    constraints: Mapping[str, float]

    @property
    def feasible(self) -> bool:
        """Whether all constraints hold."""
        return all(value <= 0 for value in self.constraints.values())


class Ledger:
    """Finished trials in order, and which points are taken by them or by running ones.

    Reading costs as much as there is new: a finished trial never changes.

    Args:
        study: The study.
        encoding: The space; trials of another one are passed over.
        keys: The same for genomes (n, D) that mean the same.
    """

    def __init__(self, study: Study, encoding: Encoding, keys: Callable[[np.ndarray], list[bytes]]) -> None:
        self.study_name = study.study_name
        self.done: list[Evaluated] = []
        self.running: dict[int, Params] = {}
        self.signs = np.array([1.0 if d == StudyDirection.MINIMIZE else -1.0 for d in study.directions])
        self._encoding, self._keys = encoding, keys
        self._read = 0
        self._open: list[int] = []
        self._finished: set[bytes] = set()
        self._failed: Counter[bytes] = Counter()
        self._running_keys: set[bytes] = set()

    def read(self, study: Study) -> None:
        """Takes in what has happened in the study since the last time."""
        trials = study.get_trials(deepcopy=False)
        fresh = [trials[number] for number in self._open] + trials[self._read :]
        self._read = len(trials)
        unfinished = [trial for trial in fresh if not trial.state.is_finished()]
        self._open = [trial.number for trial in unfinished]
        handed = {number: self.running[number] for number in self._open if number in self.running}
        own = {t.number: dict(t.params) for t in unfinished if t.state == TrialState.RUNNING and self._is_point(t)}
        self.running = {**handed, **own}
        self._running_keys = {self.key(params) for params in self.running.values()}
        for trial in fresh:
            if trial.state.is_finished() and self._is_point(trial):
                self._take(trial)

    def hand_out(self, number: int, params: Params) -> None:
        """Notes what a trial is about to be given, which the study does not show yet."""
        self.running[number] = params
        self._running_keys.add(self.key(params))

    def key(self, params: Params) -> bytes:
        """The same for parameters that mean the same."""
        return self._keys(self._encoding.encode([params]))[0]

    def taken(self, key: bytes) -> bool:
        """Whether a point is evaluated, being evaluated, or has failed too often."""
        return key in self._finished or key in self._running_keys or self._failed[key] >= ATTEMPTS

    def _is_point(self, trial: FrozenTrial) -> bool:
        return self._encoding.accepts(trial.params)

    def _take(self, trial: FrozenTrial) -> None:
        key = self.key(trial.params)
        if trial.state == TrialState.FAIL:
            self._failed[key] += 1
            return
        self._finished.add(key)
        if trial.state == TrialState.COMPLETE and np.isfinite(trial.values).all():
            genome, values = self._encoding.encode([trial.params])[0], self.signs * trial.values
            insort(self.done, Evaluated(trial.number, key, genome, values, dict(trial.constraints)), key=_number)


def _number(evaluated: Evaluated) -> int:
    return evaluated.number


def genomes_of(done: Sequence[Evaluated]) -> np.ndarray:
    """Genomes (n, D)."""
    return np.array([evaluated.genome for evaluated in done])


def values_of(done: Sequence[Evaluated]) -> np.ndarray:
    """Objectives (n, m), all minimised."""
    return np.array([evaluated.values for evaluated in done])


def constraint_of(done: Sequence[Evaluated], name: str) -> np.ndarray:
    """One constraint (n,); one that a trial did not set counts as just met."""
    return np.array([evaluated.constraints.get(name, 0.0) for evaluated in done])

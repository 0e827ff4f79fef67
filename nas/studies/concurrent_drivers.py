"""Other drivers of the same studies: claims that keep two of them from evaluating the same subnetwork."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import optuna
from optuna.trial import FrozenTrial, TrialState

from nas.studies.storage import trial_id

if TYPE_CHECKING:
    from nas.studies.trial_queue import TrialQueue

DRIVER_TIMEOUT = timedelta(minutes=30)
"""A trial of another driver that has run for longer is taken as abandoned; its subnetwork is evaluated here."""


class ConcurrentDrivers:
    """Claims evaluations in the storage that all drivers share.

    A driver writes its claim before it looks for others, so of two drivers that claim a subnetwork at the same moment
    at least one sees the other. A driver that finds no other claim starts and marks the trial; one that finds a claim
    waits. If both wait, the older trial starts.

    Args:
        driver: Id of this driver.

    Attributes:
        queues: Its queues; each adds itself.
    """

    def __init__(self, driver: str) -> None:
        self.driver = driver
        self.queues: list[TrialQueue] = []

    def refresh(self) -> None:
        """Reads the results of other drivers, in all studies."""
        for queue in self.queues:
            queue.refresh()

    def claim(self, trial: optuna.Trial, key: str) -> bool:
        """Whether this driver is to evaluate a trial's subnetwork."""
        attributes = trial.user_attrs
        is_new = attributes.get("key") != key
        if is_new:
            trial.set_user_attr("key", key)
        competing = self._competing_trials(key)
        begun = bool(attributes.get("begun"))
        is_claimed = not competing or begun or (not is_new and self._has_priority(trial, competing))
        if is_claimed and not begun:
            trial.set_user_attr("begun", True)
        return is_claimed

    def _has_priority(self, trial: optuna.Trial, competing: Sequence[FrozenTrial]) -> bool:
        if any(other.user_attrs.get("begun") for other in competing):
            starts = [other.datetime_start for other in competing if other.datetime_start is not None]
            return bool(starts) and min(starts) + DRIVER_TIMEOUT < datetime.now()
        return trial_id(trial) < min(trial_id(other) for other in competing)

    def _competing_trials(self, key: str) -> list[FrozenTrial]:
        """Running trials of other drivers with the same subnetwork."""
        return [trial for trial in self.running() if trial.user_attrs.get("key") == key]

    def running(self, study: optuna.Study | None = None) -> list[FrozenTrial]:
        """Running trials of other drivers, of one study or of all."""
        studies = [queue.study for queue in self.queues] if study is None else [study]
        trials = [t for each in studies for t in each.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
        return [trial for trial in trials if trial.user_attrs.get("driver") != self.driver]

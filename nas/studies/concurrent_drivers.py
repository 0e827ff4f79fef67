"""Rivals: what other drivers of the same studies are evaluating, so that no subnetwork is evaluated by two of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import optuna
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from nas.studies.trial_queue import Docket

LOST = timedelta(minutes=30)
"""After so long the driver of a rival trial counts as lost, and its evaluation is made here."""


class Rivals:
    """Claims evaluations in the storage that all drivers share.

    A claim is written before rivals are looked for, so of two drivers that claim one subnetwork at the same moment at
    least one sees the other. The one that sees nobody begins and says so; the one that sees a rival waits. Where both
    wait, the older trial begins.

    Args:
        driver: Who this is.

    Attributes:
        dockets: Its studies; each docket adds itself.
    """

    def __init__(self, driver: str) -> None:
        self.driver = driver
        self.dockets: list[Docket] = []

    def refresh(self) -> None:
        """Reads what other drivers have told, to any study."""
        for docket in self.dockets:
            docket.refresh()

    def claim(self, trial: optuna.Trial, key: str) -> bool:
        """Whether a trial's subnetwork is to be evaluated here, not by another driver."""
        known = trial.user_attrs
        first = known.get("key") != key
        if first:
            trial.set_user_attr("key", key)
        rivals = self._rivals(key)
        mine = not rivals or known.get("begun") or (not first and self._goes_first(trial, rivals))
        if mine and not known.get("begun"):
            trial.set_user_attr("begun", True)
        return bool(mine)

    def _goes_first(self, trial: optuna.Trial, rivals: Sequence[FrozenTrial]) -> bool:
        if any(rival.user_attrs.get("begun") for rival in rivals):
            starts = [rival.datetime_start for rival in rivals if rival.datetime_start is not None]
            return bool(starts) and min(starts) + LOST < datetime.now()
        return trial._trial_id < min(rival._trial_id for rival in rivals)

    def _rivals(self, key: str) -> list[FrozenTrial]:
        """Running trials of other drivers with the same subnetwork."""
        return [trial for trial in self.running() if trial.user_attrs.get("key") == key]

    def running(self, study: optuna.Study | None = None) -> list[FrozenTrial]:
        """Running trials of other drivers, of one study or of all."""
        found: list[FrozenTrial] = []
        for each in [docket.study for docket in self.dockets] if study is None else [study]:
            found += each.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in found if trial.user_attrs.get("driver") != self.driver]

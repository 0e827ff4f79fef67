"""Results that the studies of a run share, so that no subnetwork is evaluated twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nas.fronts.point import Point
from nas.studies.failures import Failure
from nas.studies.search_progress import HypervolumeReference

if TYPE_CHECKING:
    from nas.studies.trial_queue import PendingEvaluation


@dataclass
class EvaluationCache:
    """Results of all studies of a run by the key of the subnetwork.

    Attributes:
        complete: Key -> point of each subnetwork that was evaluated on all examples.
        truncated: Key -> point and number of examples of each whose evaluation was stopped early.
        failed: Key -> why its evaluation failed in this command; what failed in an earlier one is tried again.
        tried_again: Keys of those whose first failure was transient.
        in_flight: Key -> the evaluations that wait for its result, the one that is being made first.
        reference: The reference point of the hypervolumes.
    """

    complete: dict[str, Point] = field(default_factory=dict)
    truncated: dict[str, tuple[Point, int]] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)
    tried_again: set[str] = field(default_factory=set)
    in_flight: dict[str, list[PendingEvaluation]] = field(default_factory=dict)
    reference: HypervolumeReference = field(default_factory=HypervolumeReference)

    @property
    def has_succeeded(self) -> bool:
        """Whether any evaluation of the run has."""
        return bool(self.complete or self.truncated)

"""Book: what all studies of a run know together; Ticket: one evaluation that one of them asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nas.fronts.point import Point
from nas.studies.search_progress import Reference

if TYPE_CHECKING:
    from nas.studies.trial_queue import Ticket


@dataclass
class Book:
    """What all studies of a run know together, so that no subnetwork is evaluated twice.

    Attributes:
        known: Key -> figures of each subnetwork that was evaluated in full.
        partial: Key -> figures and number of examples of each whose evaluation was stopped early.
        failed: Key -> traceback.
        in_flight: Key -> the trials that wait for its evaluation.
        failures: Evaluations that failed since the last one that did not.
        reference: Where hypervolumes are measured from.
    """

    known: dict[str, Point] = field(default_factory=dict)
    partial: dict[str, tuple[Point, int]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    in_flight: dict[str, list[Ticket]] = field(default_factory=dict)
    failures: int = 0
    reference: Reference = field(default_factory=Reference)

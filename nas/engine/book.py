"""Book: what all studies of a run know together; Ticket: one evaluation that one of them asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import optuna

from nas.engine.racing import Race
from nas.engine.standing import Reference
from nas.fronts.point import Point
from search_spaces import SubnetConfig

if TYPE_CHECKING:
    from nas.engine.docket import Docket


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


@dataclass(frozen=True)
class Ticket:
    """One evaluation to make.

    Attributes:
        docket: Who asked for it.
        trial: The running trial that it will finish.
        subnet: What to evaluate.
        race: What it must beat to be finished; None: evaluate it in full.
    """

    docket: Docket
    trial: optuna.Trial
    subnet: SubnetConfig
    race: Race | None

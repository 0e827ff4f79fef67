"""Budget: the time that one visit to a device may take, and the part of it that a group of models has."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds since some moment."""


class Budget:
    """A time limit, counted from its creation.

    Args:
        seconds: The limit; None leaves it open until `propose` is called.
        clock: Counts seconds.
    """

    def __init__(self, seconds: float | None = None, clock: Clock = time.monotonic) -> None:
        self.seconds, self.clock = seconds, clock
        self._start = clock()

    @classmethod
    def of_minutes(cls, minutes: float | None) -> Budget:
        """A limit in minutes, or an open one."""
        return cls(None if minutes is None else 60 * minutes)

    @property
    def elapsed(self) -> float:
        """Seconds that have passed."""
        return self.clock() - self._start

    @property
    def left(self) -> float:
        """Seconds that are left; infinity while the limit is open, never below zero."""
        return math.inf if self.seconds is None else max(self.seconds - self.elapsed, 0.0)

    @property
    def is_over(self) -> bool:
        """Whether the time is used up."""
        return self.left <= 0

    def propose(self, seconds: float) -> None:
        """Sets an open limit; one that is set stays."""
        if self.seconds is None:
            self.seconds = seconds

    def share(self, part: float, reserved_s: float = 0.0) -> Budget:
        """A budget of a part of the time that is left, from now, less the seconds that are reserved for other work."""
        return Budget(None if self.seconds is None else part * max(self.left - reserved_s, 0.0), self.clock)

"""Stopping a search: the time that its parts have taken."""

from __future__ import annotations

import time

SEARCH_SHARE = 0.5
"""Share of the time for the search; random search may take what is left, as it makes as many evaluations."""
STARTUP_SHARE = 0.25
"""Share of the search's time for its random startup trials; the rest is the sampler's."""


class Stopwatch:
    """How long a study has been worked on, over all commands of its run.

    Args:
        before_s: Seconds that earlier commands took.
    """

    def __init__(self, before_s: float = 0.0) -> None:
        self._before_s = before_s
        self._start: float | None = None

    def start(self) -> None:
        """Begins to count, unless it has begun."""
        if self._start is None:
            self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before_s + (0.0 if self._start is None else time.monotonic() - self._start)

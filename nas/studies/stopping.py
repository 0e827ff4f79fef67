"""Stopping: when a search has had enough, and what Ctrl-C does to it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nas.recipe.schema import Search
from nas.studies.search_progress import Standing


class Clock:
    """How long a search has run, over all commands of its run.

    Args:
        before_s: What earlier commands took.
    """

    def __init__(self, before_s: float = 0.0) -> None:
        self._start = time.monotonic() - before_s

    @property
    def elapsed_s(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._start


def has_had_enough(search: Search, standing: Standing, clock: Clock) -> bool:
    """Whether the recipe's limit of time is up, or the hypervolume has stalled for as long as it allows."""
    late = search.hours is not None and clock.elapsed_s >= 3600 * search.hours
    return late or (search.patience is not None and standing.since_growth >= search.patience)


@contextmanager
def finishing_on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Calls ``stop`` on the first Ctrl-C, so that what is in flight can finish; a second one interrupts at once.

    Raises:
        KeyboardInterrupt: At the end of the block, if there was one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopped = False

    def handle(number: int, frame: Any) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if stopped:
        raise KeyboardInterrupt

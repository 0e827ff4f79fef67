"""Stopping a search: by its time limit, by a stalled hypervolume, by Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nas.recipe.schema import Search
from nas.studies.search_progress import SearchProgress


class ElapsedTime:
    """How long a search has run, over all commands of its run.

    Args:
        before_s: Seconds that earlier commands took.
    """

    def __init__(self, before_s: float = 0.0) -> None:
        self._start = time.monotonic() - before_s

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._start


def should_stop(search: Search, progress: SearchProgress, elapsed_time: ElapsedTime) -> bool:
    """Whether the recipe's time limit is over, or the hypervolume has stalled for ``search.patience`` evaluations."""
    is_late = search.hours is not None and elapsed_time.seconds >= 3600 * search.hours
    return is_late or (search.patience is not None and progress.n_since_improvement >= search.patience)


@contextmanager
def graceful_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Calls ``stop`` on the first Ctrl-C, so that evaluations in flight can finish; a second one interrupts at once.

    Raises:
        KeyboardInterrupt: At the end of the block, if there was one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_stopped = False

    def handle(number: int, frame: Any) -> None:
        nonlocal is_stopped
        if is_stopped:
            raise KeyboardInterrupt
        is_stopped = True
        stop()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if is_stopped:
        raise KeyboardInterrupt

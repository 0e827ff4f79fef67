"""Ctrl-C during a search: evaluations in flight finish first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


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

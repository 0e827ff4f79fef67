"""How long a model takes to load, and to run for the first time, when memory and kernels are not ready yet."""

from __future__ import annotations

import time
from collections.abc import Callable

Call = Callable[[], object]


class FirstRun:
    """Times the loading and the first pass of one model; later passes are not timed.

    Args:
        load: Loads the model, its libraries being imported, and returns a call that runs it once.
        synchronize: Returns when the device has done what was called.

    Attributes:
        load_ms: Milliseconds of `load`; None before.
        first_inference_ms: Milliseconds of the first `run`; None before.
    """

    def __init__(self, load: Callable[[], Call], synchronize: Callable[[], None]) -> None:
        self._load = load
        self._synchronize = synchronize
        self._call: Call | None = None
        self.load_ms: float | None = None
        self.first_inference_ms: float | None = None

    def load(self) -> Call:
        """Loads the model and returns `run`."""
        start = time.perf_counter()
        self._call = self._load()
        self._synchronize()
        self.load_ms = (time.perf_counter() - start) * 1e3
        return self.run

    def run(self) -> object:
        """Runs the model once."""
        assert self._call is not None, "it is not loaded"
        if self.first_inference_ms is not None:
            return self._call()
        start = time.perf_counter()
        output = self._call()
        self._synchronize()
        self.first_inference_ms = (time.perf_counter() - start) * 1e3
        return output

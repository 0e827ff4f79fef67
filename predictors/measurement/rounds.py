"""Rounds: latency samples of several models between samples of a reference model, in rounds of random order."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from random import Random

import numpy as np

from predictors.measurement.timing import REFERENCE, Timing, combine_timings, median_interval
from predictors.measurement.workload import Workload, device_errors_as_input_errors

WARM_UP_CALLS = 3
MIN_CALLS, MAX_CALLS = 3, 50
SAMPLE_MS = 5
SLOW_MS = 100
"""A sample of calls that take longer is one call, with no untimed one before it."""
QUIET_PERCENTILE, QUIET_RATIO = 10, 1.1
"""A reference is quiet up to this ratio to this percentile of all references; a wanted precision may be coarser."""
MAX_RESOLUTION_S = 1e-6
"""Resolution of a clock that latencies can be read from."""
MIN_SAMPLES = 6
"""Fewer samples give no confidence interval."""

Call = Callable[[], object]
"""Runs a model once."""


@dataclass(frozen=True)
class Sample:
    """One candidate between two references: milliseconds of the fastest call of each."""

    name: str
    before_ms: float
    model_ms: float
    after_ms: float

    @property
    def nearby_ms(self) -> float:
        """Mean latency of the two references next to the candidate."""
        return (self.before_ms + self.after_ms) / 2

    @property
    def ratio(self) -> float:
        """Latency of the candidate divided by that of the references next to it."""
        return self.model_ms / self.nearby_ms


class Rounds:
    """Samples every model once per round. After any sample the models' numbers of samples differ by at most one.

    Consecutive candidates share the reference between them. A model is warmed up before its first sample.

    Args:
        candidates: Name -> a call that runs the model once; without any, the reference is its own candidate.
        reference: The same for the model that all others are compared with.
        workload: Where the calls run.
        seed: Order of the candidates in each round.

    Attributes:
        names: The candidates.
        samples: What was measured so far.
    """

    def __init__(self, candidates: Mapping[str, Call], reference: Call, workload: Workload, seed: int = 0) -> None:
        self.names = list(candidates) or [REFERENCE]
        self.samples: list[Sample] = []
        self._models = {REFERENCE: reference, **candidates}
        self._workload, self._rng = workload, Random(seed)
        self._calls: dict[str, int] = {}
        self._before_ms: float | None = None

    def run(self, names: Sequence[str] | None = None, stop: Callable[[], bool] = lambda: False) -> None:
        """One more round of all models, or of some.

        Args:
            names: The models; default: all.
            stop: Asked before each sample; the round ends when it returns True.
        """
        names = self.names if names is None else names
        for name in self._rng.sample(names, len(names)):
            if stop():
                return
            if self._before_ms is None:
                self._before_ms = self._time(REFERENCE)
            model_ms = self._time(name)
            after_ms = self._time(REFERENCE)
            self.samples.append(Sample(name, self._before_ms, model_ms, after_ms))
            self._before_ms = after_ms

    @property
    def sampled(self) -> set[str]:
        """The models that have a sample."""
        return {sample.name for sample in self.samples}

    def timings(self, reference_ms: float | None = None, tolerance: float = 0.0) -> dict[str, Timing]:
        """The timings so far; see `timings_of`."""
        return timings_of(self.samples, reference_ms, tolerance)

    def short_of(self, precision: float, previous: Mapping[str, Timing] | None = None) -> list[str]:
        """The models whose ratio is not known to a precision yet; with previous timings, from both."""
        quiet = quiet_samples(self.samples, precision)
        return [name for name in self.names if _precision(quiet, name, (previous or {}).get(name)) > precision]

    def _time(self, name: str) -> float:
        model = self._models[name]
        if name not in self._calls:
            self._calls[name] = _warm_up(model, self._workload)
        return fastest_ms(model, self._calls[name], self._workload)


@contextmanager
def measuring(workload: Workload) -> Iterator[None]:
    """`benchmark_mode` on a device whose errors become input errors."""
    workload.check_available()
    with benchmark_mode(workload), device_errors_as_input_errors(workload):
        yield


@contextmanager
def benchmark_mode(workload: Workload) -> Iterator[None]:
    """Sets the workload's number of threads and disables autograd and garbage collection; restores all on leaving."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with _torch_benchmark_mode(workload) if workload.needs_torch else nullcontext():
            yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _torch_benchmark_mode(workload: Workload) -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(workload.threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


def fastest_ms(call: Call, calls: int, workload: Workload) -> float:
    """Milliseconds of the fastest of some calls; if there are several, after an untimed one."""
    synchronize, now_ns = synchronizer(workload), clock_ns(workload)
    if calls > 1:
        call()
        synchronize()
    times_ns = []
    for _ in range(calls):
        start = now_ns()
        call()
        synchronize()
        times_ns.append(now_ns() - start)
    return max(min(times_ns), 1) / 1e6


def clock_ns(workload: Workload) -> Callable[[], int]:
    """The clock of a workload, in nanoseconds.

    A model that runs in the calling thread alone is timed by that thread's CPU time. It passes as fast as wall time
    while the thread runs, and stands still while the scheduler gives the core to another process. On two cores shared
    by twelve processes, median ratios by wall time were off by 37 % in the mean, single ones by CPU time by 7 %.
    """
    is_fine = time.get_clock_info("thread_time").resolution <= MAX_RESOLUTION_S
    return time.thread_time_ns if workload.in_calling_thread and is_fine else time.perf_counter_ns


def synchronizer(workload: Workload) -> Callable[[], None]:
    """Returns what waits until the device of a workload has done what was called."""
    if not (workload.on_cuda and workload.needs_torch):
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(workload.device)


def _warm_up(call: Call, workload: Workload) -> int:
    """Warms a model up and returns the number of timed calls of a sample."""
    fastest = max(fastest_ms(call, WARM_UP_CALLS, workload), 1e-6)
    if fastest > SLOW_MS:
        return 1
    return min(max(math.ceil(SAMPLE_MS / fastest), MIN_CALLS), MAX_CALLS)


def timings_of(samples: list[Sample], reference_ms: float | None, tolerance: float = 0.0) -> dict[str, Timing]:
    """The timing of every model, from quiet samples where there are enough of them.

    The timing of the reference model uses the reference before each sample.

    Args:
        samples: The samples.
        reference_ms: Latency of the reference model that ratios are multiplied by; None: the median of its samples.
        tolerance: Relative; references that are slower than a quiet one by no more than this are quiet too.
    """
    quiet = quiet_samples(samples, tolerance)
    measured_ms = np.array([sample.before_ms for sample in (quiet if len(quiet) >= MIN_SAMPLES else samples)])
    median_ms = float(np.median(measured_ms))
    reference_ms = median_ms if reference_ms is None else reference_ms
    timings = {REFERENCE: _timing(measured_ms / median_ms, measured_ms, median_ms, reference_ms)}
    own_quiet = by_name(quiet)
    for name, own in by_name(samples).items():
        if name == REFERENCE:
            continue
        counted = own_quiet.get(name, [])
        counted = counted if len(counted) >= min(MIN_SAMPLES, len(own)) else own
        ratios, raw_ms, nearby_ms = np.array([(s.ratio, s.model_ms, s.nearby_ms) for s in counted]).T
        timings[name] = _timing(ratios, raw_ms, float(np.median(nearby_ms)), reference_ms)
    return timings


def by_name(samples: Collection[Sample]) -> dict[str, list[Sample]]:
    """Samples of each model, in the order of its first one."""
    grouped: dict[str, list[Sample]] = {}
    for sample in samples:
        grouped.setdefault(sample.name, []).append(sample)
    return grouped


def quiet_samples(samples: Sequence[Sample], tolerance: float) -> list[Sample]:
    """The samples between two quiet references."""
    quiet_ms = float(np.percentile([sample.before_ms for sample in samples], QUIET_PERCENTILE))
    limit_ms = max(QUIET_RATIO, 1 + tolerance) * quiet_ms
    return [sample for sample in samples if max(sample.before_ms, sample.after_ms) <= limit_ms]


def _precision(samples: list[Sample], name: str, previous: Timing | None) -> float:
    """Half the width of the confidence interval of a model's ratio, relative to it; with the previous one, of both.

    If only the reference is measured there is no ratio: its milliseconds are used (`Timing.as_milliseconds`).
    """
    own = [sample for sample in samples if sample.name == name]
    ratios = np.array([sample.before_ms if name == REFERENCE else sample.ratio for sample in own])
    if len(ratios) < MIN_SAMPLES:
        return math.inf
    timing = _timing(ratios, ratios, 1.0, 1.0)
    return (timing if previous is None else combine_timings(previous, timing)).precision


def _timing(ratios: np.ndarray, raw_ms: np.ndarray, nearby_ms: float, reference_ms: float) -> Timing:
    p10, p50, p90 = (float(p) for p in np.percentile(ratios, [10, 50, 90]))
    low, high = median_interval(ratios)
    return Timing(
        ratio=p50,
        latency_ms=p50 * reference_ms,
        latency_ms_p10=p10 * reference_ms,
        latency_ms_p90=p90 * reference_ms,
        raw_ms=float(np.median(raw_ms)),
        rounds=len(ratios),
        ratio_low=low,
        ratio_high=high,
        drift=nearby_ms / reference_ms - 1,
    )

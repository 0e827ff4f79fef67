"""Latency measurement: models are timed in interleaved rounds next to a reference model, which removes drift."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import numpy as np

from predictors.measurement.timing import REFERENCE, Timing, combine_timings, max_drift, median_interval
from predictors.measurement.workload import Workload, device_errors_as_input_errors
from search_spaces.errors import InputError

WARM_UP_CALLS = 3
MIN_CALLS, MAX_CALLS = 3, 50
SAMPLE_MS = 5
QUIET_PERCENTILE, QUIET_RATIO = 10, 1.1
"""A reference is quiet up to this ratio to this percentile of all references; a wanted precision may be coarser."""
MIN_SAMPLES = 6
"""Fewer samples give no confidence interval."""
MAX_ATTEMPTS = 2
GROUP_SIZE = 8
"""Models in one call of `measure`: all of them are in memory at once."""

T = TypeVar("T")


def measure(
    candidates: Mapping[str, Callable[[], object]],
    reference: Callable[[], object],
    workload: Workload,
    *,
    reference_ms: float | None = None,
    rounds: int = 11,
    precision: float | None = None,
    max_rounds: int = 60,
    seed: int = 0,
    previous: Mapping[str, Timing] | None = None,
) -> dict[str, Timing]:
    """Measures the latency of models relative to a reference model, in rounds of random order.

    The reference runs before and after every candidate, and the candidate's latency is divided by the mean of these
    two. A sample is one untimed call, then at least 3 timed ones (more for short calls), of which the fastest counts.
    A sample is dropped if one of its two references is over 10 % slower than a quiet reference (the 10th percentile of
    all references), or slower by more than the wanted precision if that is coarser, as long as 6 samples remain. With
    a wanted precision, further rounds measure only the models that have not reached it in quiet samples.

    Chosen on 2 shared CPU cores with BERTs of MiniLM shapes. Over 11 rounds, four identical models differed (largest
    minus smallest) by 2.0 %, standard deviation 0.9 %; with medians instead of minima by 2.5 %, with one reference per
    round by 2.6 %, without a reference by 3.3 %. On a virtual machine whose neighbours slowed it by up to two thirds,
    for seconds or minutes, subnetworks of MiniLM and of a small ViT, measured to 2 and 3 %, had mean errors of 0.87
    and 1.06 %; all samples within 25 % of the median reference gave 1.28 and 1.26 % from more rounds.

    Args:
        candidates: Name -> a call that runs the model once, on inputs of the workload.
        reference: The same for the model that all others are compared with, usually the parent.
        workload: Where the calls run; its number of threads is set for the duration.
        reference_ms: Latency of the reference model in milliseconds that ratios are multiplied by, as stored with
            previous measurements; by default the median of its quiet samples in this call.
        rounds: Minimum number of samples of each candidate.
        precision: Wanted half-width of the confidence interval of each ratio, relative; None stops after ``rounds``.
        max_rounds: Maximum number of rounds if the precision is not reached (see `noise_warning`).
        seed: Order of the candidates in each round.
        previous: Timings of the same models from a previous loading; the precision is then that of both combined (see
            `combine_timings`).

    Returns:
        Name -> timing; that of the reference model under ``"anchor"``.

    Raises:
        InputError: If the device is missing or gets lost, memory runs out, a candidate is named ``anchor``, or
            ``rounds`` is below 1.
    """
    if REFERENCE in candidates:
        raise InputError(
            f"`{REFERENCE}` is the name of the reference model, but a candidate of {sorted(candidates)} has it; "
            "rename the candidate."
        )
    if rounds < 1:
        raise InputError(f"`rounds` must be at least 1, but got {rounds}.")
    workload.check_available()
    with benchmark_mode(workload), device_errors_as_input_errors(workload):
        models = {REFERENCE: reference, **candidates}
        calls = {name: _warm_up(call, workload) for name, call in models.items()}
        limits = {"min_rounds": rounds, "max_rounds": rounds if precision is None else max(rounds, max_rounds)}
        samples = _collect_samples(
            models, calls, workload, Random(seed), **limits, precision=precision or 0.0, previous=previous
        )
    return _timings(samples, reference_ms, precision or 0.0)


def measure_retrying_if_noisy(
    candidates: Mapping[str, Callable[[], object]],
    reference: Callable[[], object],
    workload: Workload,
    *,
    reference_ms: float | None,
    precision: float,
) -> dict[str, Timing]:
    """Like `measure`, but measures a second time if the reference drifted by more than `max_drift`; keeps the quieter.

    Other processes that take turns on the cores slow the reference and the models unevenly: at 7 to 9 % of drift,
    subnetworks of MiniLM were measured up to 18 % too slow.
    """
    attempts = []
    for _ in range(MAX_ATTEMPTS):
        attempts.append(measure(candidates, reference, workload, reference_ms=reference_ms, precision=precision))
        if _largest_drift(attempts[-1]) <= max_drift(precision):
            break
    return min(attempts, key=_largest_drift)


def _largest_drift(timings: Mapping[str, Timing]) -> float:
    return max(timing.drift for timing in timings.values())


def groups(models: Sequence[T], seed: int | None = None) -> list[tuple[int, Sequence[T]]]:
    """Groups of models that are measured together, each with the number of models before it.

    Args:
        models: The models.
        seed: Shuffles them before they are grouped; None keeps their order.
    """
    order = models if seed is None else Random(seed).sample(models, len(models))
    return [(start, order[start : start + GROUP_SIZE]) for start in range(0, len(order), GROUP_SIZE)]


@dataclass(frozen=True)
class _Sample:
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
        return self.model_ms / self.nearby_ms


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


def _time(call: Callable[[], object], calls: int, workload: Workload) -> float:
    """Milliseconds of the fastest of some calls, after an untimed one."""
    synchronize = _synchronize(workload)
    call()
    synchronize()
    times_ns = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        call()
        synchronize()
        times_ns.append(time.perf_counter_ns() - start)
    return min(times_ns) / 1e6


def _synchronize(workload: Workload) -> Callable[[], None]:
    if not (workload.on_cuda and workload.needs_torch):
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(workload.device)


def _warm_up(call: Callable[[], object], workload: Workload) -> int:
    """Warms a model up and returns the number of timed calls that make a sample of a few milliseconds."""
    fastest_ms = max(_time(call, WARM_UP_CALLS, workload), 1e-6)
    return min(max(math.ceil(SAMPLE_MS / fastest_ms), MIN_CALLS), MAX_CALLS)


def _collect_samples(
    models: Mapping[str, Callable[[], object]],
    calls: Mapping[str, int],
    workload: Workload,
    rng: Random,
    *,
    min_rounds: int,
    max_rounds: int,
    precision: float,
    previous: Mapping[str, Timing] | None = None,
) -> list[_Sample]:
    """Samples every candidate once per round; after the minimum of rounds only those short of the precision.

    Consecutive candidates share the reference between them.
    """
    samples = []
    names = [name for name in models if name != REFERENCE] or [REFERENCE]
    unfinished = names
    before = _time(models[REFERENCE], calls[REFERENCE], workload)
    for done in range(1, max_rounds + 1):
        for name in rng.sample(unfinished, len(unfinished)):
            model = _time(models[name], calls[name], workload)
            after = _time(models[REFERENCE], calls[REFERENCE], workload)
            samples.append(_Sample(name, before, model, after))
            before = after
        if done >= min_rounds:
            quiet = _quiet_samples(samples, precision)
            unfinished = [name for name in names if _precision(quiet, name, (previous or {}).get(name)) > precision]
        if not unfinished:
            break
    return samples


def _timings(samples: list[_Sample], reference_ms: float | None, precision: float = 0.0) -> dict[str, Timing]:
    """The timing of every model, from quiet samples where there are enough of them.

    The timing of the reference model uses the reference before each sample.
    """
    quiet = _quiet_samples(samples, precision)
    measured_ms = np.array([sample.before_ms for sample in (quiet if len(quiet) >= MIN_SAMPLES else samples)])
    median_ms = float(np.median(measured_ms))
    reference_ms = median_ms if reference_ms is None else reference_ms
    timings = {REFERENCE: _timing(measured_ms / median_ms, measured_ms, median_ms, reference_ms)}
    for name in dict.fromkeys(sample.name for sample in samples if sample.name != REFERENCE):
        own, own_quiet = ([sample for sample in some if sample.name == name] for some in (samples, quiet))
        counted = own_quiet if len(own_quiet) >= MIN_SAMPLES else own
        ratios, raw_ms, nearby_ms = np.array([(s.ratio, s.model_ms, s.nearby_ms) for s in counted]).T
        timings[name] = _timing(ratios, raw_ms, float(np.median(nearby_ms)), reference_ms)
    return timings


def _quiet_samples(samples: list[_Sample], precision: float) -> list[_Sample]:
    """The samples between two quiet references."""
    quiet_ms = float(np.percentile([sample.before_ms for sample in samples], QUIET_PERCENTILE))
    limit_ms = max(QUIET_RATIO, 1 + precision) * quiet_ms
    return [sample for sample in samples if max(sample.before_ms, sample.after_ms) <= limit_ms]


def _precision(samples: list[_Sample], name: str, previous: Timing | None) -> float:
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

"""Measured latency: interleaved rounds beside an anchor model, free of the machine's drift."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np

from predictors.workload import Workload, fitting_in_memory
from search_spaces import InputError

ANCHOR = "anchor"
"""The name under which `measure` returns the anchor itself."""

WARM_UP_CALLS = 3
MIN_CALLS, MAX_CALLS = 3, 50
VISIT_NS = 5_000_000
MAX_DRIFT = 0.25
MIN_KEPT = 5


@dataclass(frozen=True)
class Timing:
    """What one model took.

    Attributes:
        ratio: Median over rounds of this model's latency over the anchor's, measured side by side.
        latency_ms: ``ratio`` times the reference latency of the anchor, so free of the machine's drift.
        latency_ms_p10: 10th percentile over rounds, corrected in the same way.
        latency_ms_p90: 90th percentile over rounds, corrected in the same way.
        raw_ms: Median of all timed calls, uncorrected.
        rounds: Rounds that counted.
    """

    ratio: float
    latency_ms: float
    latency_ms_p10: float
    latency_ms_p90: float
    raw_ms: float
    rounds: int


def measure(
    candidates: Mapping[str, Callable[[], object]],
    anchor: Callable[[], object],
    workload: Workload,
    *,
    anchor_ms: float | None = None,
    rounds: int = 11,
    seed: int = 0,
) -> dict[str, Timing]:
    """Times models against an anchor, in rounds of random order.

    The anchor is visited before and after every candidate, and a candidate is divided by the mean of these two
    neighbours; a visit is one untimed call, then at least 3 timed ones (more for short calls), of which the fastest
    counts. A visit whose neighbours stray by more than 25 % from the median anchor is dropped, if 5 are left.

    Chosen on 2 shared CPU cores with BERTs of MiniLM shapes. Over 11 rounds, four identical models spread (largest
    minus smallest) by 2.0 %, standard deviation 0.9 %; with medians instead of minima by 2.5 %, with one anchor for
    the round by 2.6 %, without an anchor by 3.3 %. With other work on both cores the standard deviation was 3.5 %, and
    2.0 % over 21 rounds.

    Args:
        candidates: Name -> a call that runs the model once, on inputs of the workload.
        anchor: The same for the model that all others are compared with, usually the parent.
        workload: Where the calls run; its threads are set for the duration.
        anchor_ms: Reference latency of the anchor in milliseconds, as stored with earlier measurements; by default
            the median of this very call.
        rounds: Visits of each candidate.
        seed: Order of the candidates in each round.

    Returns:
        Name -> timing, the anchor's own under ``"anchor"``.

    Raises:
        InputError: If the device is not there, a candidate is named ``anchor``, or ``rounds`` is below 1.
    """
    if ANCHOR in candidates:
        raise InputError(f"`{ANCHOR}` names the reference and no candidate, but got {sorted(candidates)}; rename it.")
    if rounds < 1:
        raise InputError(f"`rounds` must be at least 1, but got {rounds}.")
    workload.check_available()
    with _quiet(workload), fitting_in_memory(workload):
        models = {ANCHOR: anchor, **candidates}
        calls = {name: _warm(call, workload) for name, call in models.items()}
        visits = _rounds(models, calls, workload, rounds, Random(seed))
    return _timings(visits, anchor_ms)


@dataclass(frozen=True)
class _Visit:
    """One candidate between two anchors: nanoseconds of every timed call."""

    name: str
    before: list[int]
    here: list[int]
    after: list[int]


@contextmanager
def _quiet(workload: Workload) -> Iterator[None]:
    """The workload's threads, no autograd, no garbage collection; all as before on leaving."""
    import torch

    threads, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(workload.threads)
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()


def _time(call: Callable[[], object], calls: int, workload: Workload) -> list[int]:
    """Nanoseconds of each timed call, after one untimed one."""
    synchronize = _synchronize(workload)
    call()
    synchronize()
    taken = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        call()
        synchronize()
        taken.append(time.perf_counter_ns() - start)
    return taken


def _synchronize(workload: Workload) -> Callable[[], None]:
    if not workload.on_cuda:
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(workload.device)


def _warm(call: Callable[[], object], workload: Workload) -> int:
    """Warms a model up and says how many timed calls make a visit of a few milliseconds."""
    fastest = max(min(_time(call, WARM_UP_CALLS, workload)), 1)
    return min(max(-(-VISIT_NS // fastest), MIN_CALLS), MAX_CALLS)


def _rounds(
    models: Mapping[str, Callable[[], object]], calls: Mapping[str, int], workload: Workload, rounds: int, rng: Random
) -> list[_Visit]:
    """Visits every candidate once per round; neighbours share the anchor visit between them."""
    visits = []
    names = [name for name in models if name != ANCHOR] or [ANCHOR]
    before = _time(models[ANCHOR], calls[ANCHOR], workload)
    for _ in range(rounds):
        for name in rng.sample(names, len(names)):
            here = _time(models[name], calls[name], workload)
            after = _time(models[ANCHOR], calls[ANCHOR], workload)
            visits.append(_Visit(name, before, here, after))
            before = after
    return visits


def _timings(visits: list[_Visit], anchor_ms: float | None) -> dict[str, Timing]:
    """The timing of every model; `_Visit.before` of all visits are the anchor's own visits."""
    own = np.array([min(visit.before) for visit in visits]) / 1e6
    centre = float(np.median(own))
    reference = centre if anchor_ms is None else anchor_ms
    timings = {ANCHOR: _timing(own / centre, [ns for visit in visits for ns in visit.before], reference)}
    for name in dict.fromkeys(visit.name for visit in visits if visit.name != ANCHOR):
        kept = _steady([visit for visit in visits if visit.name == name], centre)
        ratios = np.array([2 * min(v.here) / (min(v.before) + min(v.after)) for v in kept])
        timings[name] = _timing(ratios, [ns for v in kept for ns in v.here], reference)
    return timings


def _steady(visits: list[_Visit], centre_ms: float) -> list[_Visit]:
    """The visits whose two anchors are near the median anchor; all of them where too few are."""

    def strays(calls: list[int]) -> bool:
        return abs(min(calls) / 1e6 / centre_ms - 1) > MAX_DRIFT

    kept = [visit for visit in visits if not (strays(visit.before) or strays(visit.after))]
    return kept if len(kept) >= MIN_KEPT else visits


def _timing(ratios: np.ndarray, calls_ns: list[int], reference_ms: float) -> Timing:
    p10, p50, p90 = (float(p) for p in np.percentile(ratios, [10, 50, 90]))
    return Timing(
        ratio=p50,
        latency_ms=p50 * reference_ms,
        latency_ms_p10=p10 * reference_ms,
        latency_ms_p90=p90 * reference_ms,
        raw_ms=float(np.median(calls_ns)) / 1e6,
        rounds=len(ratios),
    )


@lru_cache
def device_name(workload: Workload) -> str:
    """The processor or GPU that a workload runs on, as its maker names it.

    Raises:
        InputError: If the device is not on this machine.
    """
    workload.check_available()
    if workload.on_cuda:
        import torch

        return str(torch.cuda.get_device_name(workload.device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (named or [platform.processor() or platform.machine()])[0]

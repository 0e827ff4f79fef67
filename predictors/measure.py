"""Measured latency: interleaved rounds beside an anchor model, free of the machine's drift."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import numpy as np

from predictors.timing import ANCHOR, MAX_DRIFT, Timing, median_interval
from predictors.workload import Workload, one_line_errors
from search_spaces.errors import InputError

WARM_UP_CALLS = 3
MIN_CALLS, MAX_CALLS = 3, 50
VISIT_NS = 5_000_000
CALM_PERCENTILE, CALM = 10, 1.1
"""A visit of the anchor is calm up to so many times this percentile of all of them."""
MIN_KEPT = 5
ATTEMPTS = 2
TOGETHER = 8
"""Models in one call of `measure`: all of them are in memory at once."""

T = TypeVar("T")


def measure(
    candidates: Mapping[str, Callable[[], object]],
    anchor: Callable[[], object],
    workload: Workload,
    *,
    anchor_ms: float | None = None,
    rounds: int = 11,
    precision: float | None = None,
    max_rounds: int = 60,
    seed: int = 0,
) -> dict[str, Timing]:
    """Times models against an anchor, in rounds of random order.

    The anchor is visited before and after every candidate, and a candidate is divided by the mean of these two
    neighbours; a visit is one untimed call, then at least 3 timed ones (more for short calls), of which the fastest
    counts. A visit is dropped where one of its neighbours is over 10 % slower than the anchor is when all is calm (the
    10th percentile of its visits), if 5 are left. Where a precision is wanted, rounds go on with the models that have
    not reached it.

    Chosen on 2 shared CPU cores with BERTs of MiniLM shapes. Over 11 rounds, four identical models spread (largest
    minus smallest) by 2.0 %, standard deviation 0.9 %; with medians instead of minima by 2.5 %, with one anchor for
    the round by 2.6 %, without an anchor by 3.3 %. Where neighbours of a virtual machine made it slower by up to two
    thirds, for seconds or minutes, subnetworks of MiniLM and of a small ViT, measured to 2 and 3 %, were off by 0.87
    and 1.06 % in the mean; all visits within 25 % of the median anchor gave 1.28 and 1.26 %, of more rounds.

    Args:
        candidates: Name -> a call that runs the model once, on inputs of the workload.
        anchor: The same for the model that all others are compared with, usually the parent.
        workload: Where the calls run; its threads are set for the duration.
        anchor_ms: Reference latency of the anchor in milliseconds, as stored with earlier measurements; by default
            the median of this very call.
        rounds: Visits of each candidate, at least.
        precision: Wanted half-width of the confidence interval of each ratio, relative; None: no more than ``rounds``.
        max_rounds: Where rounds end even if a precision is not reached (see `doubts`).
        seed: Order of the candidates in each round.

    Returns:
        Name -> timing, the anchor's own under ``"anchor"``.

    Raises:
        InputError: If the device is not there or gets lost, memory runs out, a candidate is named ``anchor``, or
            ``rounds`` is below 1.
    """
    if ANCHOR in candidates:
        raise InputError(f"`{ANCHOR}` names the reference and no candidate, but got {sorted(candidates)}; rename it.")
    if rounds < 1:
        raise InputError(f"`rounds` must be at least 1, but got {rounds}.")
    workload.check_available()
    with quiet(workload), one_line_errors(workload):
        models = {ANCHOR: anchor, **candidates}
        calls = {name: _warm(call, workload) for name, call in models.items()}
        most = rounds if precision is None else max(rounds, max_rounds)
        visits = _visits(models, calls, workload, Random(seed), least=rounds, most=most, precision=precision or 0.0)
    return _timings(visits, anchor_ms)


def measure_in_calm(
    candidates: Mapping[str, Callable[[], object]],
    anchor: Callable[[], object],
    workload: Workload,
    *,
    anchor_ms: float | None,
    precision: float,
) -> dict[str, Timing]:
    """As `measure`, once more where the anchor is slower than its reference by over `MAX_DRIFT`, as when others take
    turns on the cores; the calmer counts. At 24 %, six latencies of MiniLM's subnetworks were 11 to 14 % too long."""
    attempts = []
    for _ in range(ATTEMPTS):
        attempts.append(measure(candidates, anchor, workload, anchor_ms=anchor_ms, precision=precision))
        if attempts[-1][ANCHOR].drift <= MAX_DRIFT:
            break
    return min(attempts, key=lambda timed: timed[ANCHOR].drift)


def groups(models: Sequence[T], seed: int | None = None) -> list[tuple[int, Sequence[T]]]:
    """Models that share their rounds, each group with the number of models before it; shuffled by a seed, if given."""
    order = models if seed is None else Random(seed).sample(models, len(models))
    return [(start, order[start : start + TOGETHER]) for start in range(0, len(order), TOGETHER)]


@dataclass(frozen=True)
class _Visit:
    """One candidate between two anchors: nanoseconds of every timed call."""

    name: str
    before: list[int]
    here: list[int]
    after: list[int]


@contextmanager
def quiet(workload: Workload) -> Iterator[None]:
    """The workload's threads, no autograd, no garbage collection; all as before on leaving."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with _quiet_torch(workload) if workload.needs_torch else nullcontext():
            yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _quiet_torch(workload: Workload) -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(workload.threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


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
    if not (workload.on_cuda and workload.needs_torch):
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(workload.device)


def _warm(call: Callable[[], object], workload: Workload) -> int:
    """Warms a model up and says how many timed calls make a visit of a few milliseconds."""
    fastest = max(min(_time(call, WARM_UP_CALLS, workload)), 1)
    return min(max(-(-VISIT_NS // fastest), MIN_CALLS), MAX_CALLS)


def _visits(
    models: Mapping[str, Callable[[], object]],
    calls: Mapping[str, int],
    workload: Workload,
    rng: Random,
    *,
    least: int,
    most: int,
    precision: float,
) -> list[_Visit]:
    """Visits every candidate once per round, those of the wanted precision no more after the least number of rounds;
    neighbours share the anchor visit between them."""
    visits = []
    wanting = [name for name in models if name != ANCHOR] or [ANCHOR]
    before = _time(models[ANCHOR], calls[ANCHOR], workload)
    for done in range(1, most + 1):
        for name in rng.sample(wanting, len(wanting)):
            here = _time(models[name], calls[name], workload)
            after = _time(models[ANCHOR], calls[ANCHOR], workload)
            visits.append(_Visit(name, before, here, after))
            before = after
        if done >= least:
            reached = _timings(visits, None)
            wanting = [name for name in wanting if reached[name].precision > precision]
        if not wanting:
            break
    return visits


def _timings(visits: list[_Visit], anchor_ms: float | None) -> dict[str, Timing]:
    """The timing of every model; `_Visit.before` of all visits are the anchor's own visits."""
    own = np.array([min(visit.before) for visit in visits]) / 1e6
    calm_ms = CALM * float(np.percentile(own, CALM_PERCENTILE))
    calm = own[own <= calm_ms] if np.sum(own <= calm_ms) >= MIN_KEPT else own
    centre = float(np.median(calm))
    reference = centre if anchor_ms is None else anchor_ms
    drift = centre / reference - 1
    timings = {ANCHOR: _timing(calm / centre, calm, reference, drift)}
    for name in dict.fromkeys(visit.name for visit in visits if visit.name != ANCHOR):
        kept = _calm([visit for visit in visits if visit.name == name], calm_ms)
        ratios = np.array([2 * min(v.here) / (min(v.before) + min(v.after)) for v in kept])
        timings[name] = _timing(ratios, np.array([min(v.here) for v in kept]) / 1e6, reference, drift)
    return timings


def _calm(visits: list[_Visit], calm_ms: float) -> list[_Visit]:
    """The visits between two calm anchors; all of them where too few are."""
    kept = [visit for visit in visits if max(min(visit.before), min(visit.after)) / 1e6 <= calm_ms]
    return kept if len(kept) >= MIN_KEPT else visits


def _timing(ratios: np.ndarray, raw_ms: np.ndarray, reference_ms: float, drift: float) -> Timing:
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
        drift=drift,
    )

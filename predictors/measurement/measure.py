"""Measured latency: interleaved rounds beside an anchor model, free of the machine's drift."""

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

from predictors.measurement.timing import ANCHOR, Timing, combine, max_drift, median_interval
from predictors.measurement.workload import Workload, one_line_errors
from search_spaces.errors import InputError

WARM_UP_CALLS = 3
MIN_CALLS, MAX_CALLS = 3, 50
VISIT_MS = 5
CALM_PERCENTILE, CALM = 10, 1.1
"""A visit of the anchor is calm up to so many times this percentile of all; a coarser wanted precision is calm too."""
MIN_KEPT = 6
"""Fewer visits hold no confidence interval."""
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
    earlier: Mapping[str, Timing] | None = None,
) -> dict[str, Timing]:
    """Times models against an anchor, in rounds of random order.

    The anchor is visited before and after every candidate, and a candidate is divided by the mean of these two
    neighbours; a visit is one untimed call, then at least 3 timed ones (more for short calls), of which the fastest
    counts. A visit is dropped where one of its neighbours is over 10 % slower than the anchor is when all is calm (the
    10th percentile of its visits), or by more than the precision wanted if that is coarser, if 6 are left. Where a
    precision is wanted, rounds go on with the models that have not reached it in calm.

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
            the median of its calm visits in this very call.
        rounds: Visits of each candidate, at least.
        precision: Wanted half-width of the confidence interval of each ratio, relative; None: no more than ``rounds``.
        max_rounds: Where rounds end even if a precision is not reached (see `doubts`).
        seed: Order of the candidates in each round.
        earlier: Timings of the same models, loaded before; the interval of both together (`combine`) is then what must
            reach the precision.

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
        visits = _visits(
            models, calls, workload, Random(seed), least=rounds, most=most, precision=precision or 0.0, earlier=earlier
        )
    return _timings(visits, anchor_ms, precision or 0.0)


def measure_in_calm(
    candidates: Mapping[str, Callable[[], object]],
    anchor: Callable[[], object],
    workload: Workload,
    *,
    anchor_ms: float | None,
    precision: float,
) -> dict[str, Timing]:
    """As `measure`, once more where the anchor beside a model was slower than its reference by over `max_drift`, as
    where others take turns on the cores; the calmer counts.

    At 7 to 9 %, subnetworks of MiniLM were up to 18 % too slow beside it.
    """
    attempts = []
    for _ in range(ATTEMPTS):
        attempts.append(measure(candidates, anchor, workload, anchor_ms=anchor_ms, precision=precision))
        if _disturbance(attempts[-1]) <= max_drift(precision):
            break
    return min(attempts, key=_disturbance)


def _disturbance(timings: Mapping[str, Timing]) -> float:
    return max(timing.drift for timing in timings.values())


def groups(models: Sequence[T], seed: int | None = None) -> list[tuple[int, Sequence[T]]]:
    """Models that share their rounds, each group with the number of models before it; shuffled by a seed, if given."""
    order = models if seed is None else Random(seed).sample(models, len(models))
    return [(start, order[start : start + TOGETHER]) for start in range(0, len(order), TOGETHER)]


@dataclass(frozen=True)
class _Visit:
    """One candidate between two anchors: milliseconds of the fastest call of each."""

    name: str
    before_ms: float
    here_ms: float
    after_ms: float

    @property
    def anchor_ms(self) -> float:
        return (self.before_ms + self.after_ms) / 2

    @property
    def ratio(self) -> float:
        return self.here_ms / self.anchor_ms


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


def _time(call: Callable[[], object], calls: int, workload: Workload) -> float:
    """Milliseconds of the fastest of some calls, after an untimed one."""
    synchronize = _synchronize(workload)
    call()
    synchronize()
    taken = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        call()
        synchronize()
        taken.append(time.perf_counter_ns() - start)
    return min(taken) / 1e6


def _synchronize(workload: Workload) -> Callable[[], None]:
    if not (workload.on_cuda and workload.needs_torch):
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(workload.device)


def _warm(call: Callable[[], object], workload: Workload) -> int:
    """Warms a model up and says how many timed calls make a visit of a few milliseconds."""
    fastest_ms = max(_time(call, WARM_UP_CALLS, workload), 1e-6)
    return min(max(math.ceil(VISIT_MS / fastest_ms), MIN_CALLS), MAX_CALLS)


def _visits(
    models: Mapping[str, Callable[[], object]],
    calls: Mapping[str, int],
    workload: Workload,
    rng: Random,
    *,
    least: int,
    most: int,
    precision: float,
    earlier: Mapping[str, Timing] | None = None,
) -> list[_Visit]:
    """Visits every candidate once per round, those of the wanted precision no more after the least number of rounds;
    neighbours share the anchor visit between them."""
    visits = []
    names = [name for name in models if name != ANCHOR] or [ANCHOR]
    wanting = names
    before = _time(models[ANCHOR], calls[ANCHOR], workload)
    for done in range(1, most + 1):
        for name in rng.sample(wanting, len(wanting)):
            here = _time(models[name], calls[name], workload)
            after = _time(models[ANCHOR], calls[ANCHOR], workload)
            visits.append(_Visit(name, before, here, after))
            before = after
        if done >= least:
            calm = _calm(visits, precision)
            wanting = [name for name in names if _precision(calm, name, (earlier or {}).get(name)) > precision]
        if not wanting:
            break
    return visits


def _timings(visits: list[_Visit], anchor_ms: float | None, precision: float = 0.0) -> dict[str, Timing]:
    """The timing of every model, from calm visits where there are enough; the first anchors are its own visits."""
    calm = _calm(visits, precision)
    own_ms = np.array([visit.before_ms for visit in (calm if len(calm) >= MIN_KEPT else visits)])
    centre = float(np.median(own_ms))
    reference = centre if anchor_ms is None else anchor_ms
    timings = {ANCHOR: _timing(own_ms / centre, own_ms, centre, reference)}
    for name in dict.fromkeys(visit.name for visit in visits if visit.name != ANCHOR):
        mine, kept = ([visit for visit in some if visit.name == name] for some in (visits, calm))
        counted = kept if len(kept) >= MIN_KEPT else mine
        ratios, raw_ms, beside_ms = np.array([(v.ratio, v.here_ms, v.anchor_ms) for v in counted]).T
        timings[name] = _timing(ratios, raw_ms, float(np.median(beside_ms)), reference)
    return timings


def _calm(visits: list[_Visit], precision: float) -> list[_Visit]:
    """The visits between two calm anchors."""
    calm_ms = max(CALM, 1 + precision) * float(np.percentile([visit.before_ms for visit in visits], CALM_PERCENTILE))
    return [visit for visit in visits if max(visit.before_ms, visit.after_ms) <= calm_ms]


def _precision(visits: list[_Visit], name: str, earlier: Timing | None) -> float:
    """Half the width of the confidence interval of a model's ratio, relative to it; joined with an earlier one's.

    An anchor alone has no ratio: its milliseconds stand in (`Timing.in_ms`).
    """
    alone = name == ANCHOR
    ratios = np.array([visit.before_ms if alone else visit.ratio for visit in visits if visit.name == name])
    if len(ratios) < MIN_KEPT:
        return math.inf
    timing = _timing(ratios, ratios, 1.0, 1.0)
    return (timing if earlier is None else combine(earlier, timing)).precision


def _timing(ratios: np.ndarray, raw_ms: np.ndarray, beside_ms: float, reference_ms: float) -> Timing:
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
        drift=beside_ms / reference_ms - 1,
    )

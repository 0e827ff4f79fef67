"""Timing: the latency of one model relative to a reference model, its confidence interval, and a noise warning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

REFERENCE = "anchor"
"""The name under which `measure` returns the reference model, in results and in files."""

MOST = 1e9
"""The greatest latency in milliseconds (eleven days), ratio or number of rounds that a measurement gives."""
ROUNDING = 1e-6
"""Relative difference by which computed ends of intervals may be off."""
CONFIDENCE = 0.95
MAX_DRIFT = 0.05
UNKNOWN_INTERVAL = (("ratio_low", 0.0), ("ratio_high", math.inf))
"""Ends of an interval that is unknown."""
COVERAGE = 0.9
FEW_ROUNDS, FEW_REPEATED, FEW_ROUNDS_SPREAD = 6, 9, 0.1
"""Fewer rounds say nothing of the spread, fewer repeated models no bound on nine in ten; the least spread then."""


@dataclass(frozen=True)
class Timing:
    """The latency of one model.

    Attributes:
        ratio: Median over rounds of the model's latency divided by that of the reference model at the same time.
        latency_ms: ``ratio`` times the reference latency, which removes the machine's drift.
        latency_ms_p10: 10th percentile over rounds, corrected in the same way.
        latency_ms_p90: 90th percentile over rounds, corrected in the same way.
        raw_ms: Median over rounds, uncorrected.
        rounds: Number of rounds that were used.
        ratio_low: Lower end of the 95 % confidence interval of ``ratio``; 0 if unknown.
        ratio_high: Upper end of that interval; infinity if unknown.
        drift: How much slower the reference model was during this measurement than its reference latency, relative.
    """

    ratio: float
    latency_ms: float
    latency_ms_p10: float
    latency_ms_p90: float
    raw_ms: float
    rounds: int
    ratio_low: float = 0.0
    ratio_high: float = math.inf
    drift: float = 0.0

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Timing:
        """Reads the fields from a row. The row may have other fields too; fields with defaults may be missing.

        Raises:
            ValueError: If a value is not a number that a measurement can give.
            TypeError: If a field is missing.
        """
        timing = cls(**{field.name: row[field.name] for field in fields(cls) if field.name in row})
        for name, value in asdict(timing).items():
            least = -1 if name == "drift" else 0
            if not (type(value) in (int, float) and (least < value < math.inf or (name, value) in UNKNOWN_INTERVAL)):
                raise ValueError(f"`{name}` must be a finite number above {least}, but got {repr(value)[:40]}")
            if value > MOST and (name, value) not in UNKNOWN_INTERVAL:
                raise ValueError(f"`{name}` must be at most {MOST:g}, but got {str(value)[:40]}")
        timing._check_order()
        return timing

    def _check_order(self) -> None:
        """Raises ValueError unless the ends of intervals are around what lies between them, and rounds are whole."""
        if type(self.rounds) is not int:
            raise ValueError(f"`rounds` must be a whole number, but got {self.rounds}")
        for low, middle, high in (
            ("latency_ms_p10", "latency_ms", "latency_ms_p90"),
            ("ratio_low", "ratio", "ratio_high"),
        ):
            a, b, c = (getattr(self, name) for name in (low, middle, high))
            if a > b * (1 + ROUNDING) or b > c * (1 + ROUNDING):
                raise ValueError(f"`{middle}` must lie between `{low}` and `{high}`, but got {a:g}, {b:g}, {c:g}")

    @property
    def precision(self) -> float:
        """Half the width of the confidence interval of the ratio, relative to the ratio."""
        return (self.ratio_high - self.ratio_low) / (2 * self.ratio)

    @property
    def relative_spread(self) -> float:
        """Half the distance between the 10th and the 90th percentile over rounds, relative to the median."""
        return (self.latency_ms_p90 - self.latency_ms_p10) / (2 * self.latency_ms)

    @property
    def raw(self) -> Timing:
        """The same rounds without the correction for drift."""
        return self.rescaled(self.raw_ms / self.ratio)

    @property
    def as_milliseconds(self) -> Timing:
        """The rounds of a reference model, with its latency in milliseconds in place of the ratio."""
        low, high = self.ratio_low * self.raw_ms, self.ratio_high * self.raw_ms
        return replace(self.raw, ratio=self.raw_ms, ratio_low=low, ratio_high=high)

    def rescaled(self, reference_ms: float) -> Timing:
        """The same rounds with another reference latency."""
        latency_ms = reference_ms * self.ratio
        scale = latency_ms / self.latency_ms
        return replace(
            self,
            latency_ms=latency_ms,
            latency_ms_p10=self.latency_ms_p10 * scale,
            latency_ms_p90=self.latency_ms_p90 * scale,
            drift=(1 + self.drift) / scale - 1,
        )


def median_reference(references: Iterable[Timing]) -> Timing | None:
    """The timing with the median latency; of an even number the lower of the middle two, and None of none."""
    ordered = sorted(references, key=lambda timing: timing.latency_ms)
    return ordered[(len(ordered) - 1) // 2] if ordered else None


def median_interval(values: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Confidence interval of a median, for any distribution; its ends are two of the values.

    The number of values below the median is binomial (David & Nagaraja, Order Statistics, 3rd ed., 7.1). Fewer than
    six values give no 95 % interval; the result is then (0, infinity).
    """
    ordered, n = np.sort(np.asarray(values, dtype=float)), len(values)
    below, cut = math.exp(-n * math.log(2)), 0
    while below <= (1 - confidence) / 2:
        cut += 1
        below += math.exp(math.lgamma(n + 1) - math.lgamma(cut + 1) - math.lgamma(n - cut + 1) - n * math.log(2))
    return (float(ordered[cut - 1]), float(ordered[n - cut])) if cut else (0.0, math.inf)


def combine_timings(first: Timing, second: Timing) -> Timing:
    """Combines two measurements of one model, loaded once for each; the intervals cover both."""
    return Timing(
        ratio=math.sqrt(first.ratio * second.ratio),
        latency_ms=math.sqrt(first.latency_ms * second.latency_ms),
        latency_ms_p10=min(first.latency_ms_p10, second.latency_ms_p10),
        latency_ms_p90=max(first.latency_ms_p90, second.latency_ms_p90),
        raw_ms=math.sqrt(first.raw_ms * second.raw_ms),
        rounds=first.rounds + second.rounds,
        ratio_low=min(first.ratio_low, second.ratio_low),
        ratio_high=max(first.ratio_high, second.ratio_high),
        drift=max(first.drift, second.drift, key=abs),
    )


@dataclass(frozen=True)
class ReportedLatency:
    """A latency and half the width of an interval that contains 90 % of repetitions in a new process."""

    latency_ms: float
    error_ms: float


def reported_latency(
    first: Timing, second: Timing | None, repeated: Iterable[tuple[Timing, Timing]]
) -> ReportedLatency:
    """The latency to report for a model that was measured, loaded again and measured a second time.

    Loading a model again changes its speed: the position of its memory, the models that ran before, and the models in
    the same rounds differ. More rounds of one instance do not show this, repetitions do. The interval is the conformal
    bound on the distance between two measurements of one model (Vovk, Gammerman & Shafer, Algorithmic Learning in a
    Random World, 2005). The reported latency is the mean of both, which is closer to a third measurement than either.

    Args:
        first: The first measurement.
        second: The second one. Without it, the result is the first measurement; if nothing was repeated, with its
            10-90 % spread over rounds.
        repeated: Both measurements of every model under the same workload on the same device. Of fewer than nine, the
            interval is at least 10 % where the model itself had fewer than six rounds.
    """
    measured = first if second is None else combine_timings(first, second)
    distances = sorted(abs(math.log(again.latency_ms / once.latency_ms)) for once, again in repeated)
    bound = measured.relative_spread
    if distances:
        bound = distances[min(math.ceil((len(distances) + 1) * COVERAGE), len(distances)) - 1]
    if len(distances) < FEW_REPEATED and measured.rounds < FEW_ROUNDS:
        bound = max(bound, FEW_ROUNDS_SPREAD)
    return ReportedLatency(measured.latency_ms, measured.latency_ms * bound)


def max_drift(precision: float) -> float:
    """The drift of a reference model up to which a measurement counts as undisturbed, at a wanted precision."""
    return max(MAX_DRIFT, precision)


def noise_warning(timings: Mapping[str, Timing], precision: float) -> str:
    """A warning about timings that missed their precision or drifted; empty if there is nothing to warn about.

    A drift of the reference model beyond `max_drift` is part of the warning, although ratios are to references nearby:
    a machine that changes so much slows models unevenly. Where other processes take turns on its cores, short calls
    fit between the turns and long ones do not, so a ratio can be precise and wrong.
    """
    messages = []
    models = {name: timing for name, timing in timings.items() if name != REFERENCE} or timings
    missed = {name: timing for name, timing in models.items() if timing.precision > precision}
    if missed:
        name, worst = max(missed.items(), key=lambda item: item[1].precision)
        messages.append(
            f"{len(missed)} of {len(models)} latencies are less precise than ±{precision:.1%}; the worst, {name}, is "
            f"±{worst.precision:.1%} after {worst.rounds} rounds (10-90 % spread {worst.relative_spread:.0%})"
        )
    drift = max((timing.drift for timing in timings.values()), key=abs, default=0.0)
    if abs(drift) > max_drift(precision):
        direction = "slower" if drift > 0 else "faster"
        messages.append(f"the reference model ran {abs(drift):.0%} {direction} than its reference latency")
    return "; ".join(messages)

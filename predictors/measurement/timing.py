"""Timing: what one model took beside an anchor, how sure that is, and what must be said where it is not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

ANCHOR = "anchor"
"""The name under which `measure` returns the anchor itself."""

CONFIDENCE = 0.95
MAX_DRIFT = 0.05
UNKNOWN = (("ratio_low", 0.0), ("ratio_high", math.inf))
"""Ends of an interval of which nothing is known."""
COVERAGE = 0.9


@dataclass(frozen=True)
class Timing:
    """What one model took.

    Attributes:
        ratio: Median over rounds of this model's latency over the anchor's, measured side by side.
        latency_ms: ``ratio`` times the reference latency of the anchor, so free of the machine's drift.
        latency_ms_p10: 10th percentile over rounds, corrected in the same way.
        latency_ms_p90: 90th percentile over rounds, corrected in the same way.
        raw_ms: Median over rounds, uncorrected.
        rounds: Rounds that counted.
        ratio_low: Lower end of the 95 % confidence interval of ``ratio``; by default, nothing is known.
        ratio_high: Its upper end.
        drift: How much slower the anchor was beside this model than its reference, relative.
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
        """Reads back fields of a row, which may have others too; those with defaults may be missing.

        Raises:
            ValueError: If one is a number that no measurement gives, or none.
            TypeError: If one is missing.
        """
        timing = cls(**{field.name: row[field.name] for field in fields(cls) if field.name in row})
        for name, value in asdict(timing).items():
            least = -1 if name == "drift" else 0
            if not (type(value) in (int, float) and (least < value < math.inf or (name, value) in UNKNOWN)):
                raise ValueError(f"`{name}` must be a finite number above {least}, but got {value!r}")
        return timing

    @property
    def precision(self) -> float:
        """Half the width of the confidence interval of the ratio, relative to it."""
        return (self.ratio_high - self.ratio_low) / (2 * self.ratio)

    @property
    def spread(self) -> float:
        """Half the width between the 10th and the 90th percentile over rounds, relative to the median."""
        return (self.latency_ms_p90 - self.latency_ms_p10) / (2 * self.latency_ms)

    @property
    def uncorrected(self) -> Timing:
        """The same rounds, on the scale of what they took."""
        return self.beside(self.raw_ms / self.ratio)

    @property
    def in_ms(self) -> Timing:
        """An anchor's own rounds, as ratios to one millisecond."""
        low, high = self.ratio_low * self.raw_ms, self.ratio_high * self.raw_ms
        return replace(self.uncorrected, ratio=self.raw_ms, ratio_low=low, ratio_high=high)

    def beside(self, anchor_ms: float) -> Timing:
        """The same rounds, by another reference latency of the anchor."""
        latency_ms = anchor_ms * self.ratio
        scale = latency_ms / self.latency_ms
        return replace(
            self,
            latency_ms=latency_ms,
            latency_ms_p10=self.latency_ms_p10 * scale,
            latency_ms_p90=self.latency_ms_p90 * scale,
            drift=(1 + self.drift) / scale - 1,
        )


def median_anchor(anchors: Iterable[Timing]) -> Timing | None:
    """The timing of median latency, the lower of two; None of none."""
    ordered = sorted(anchors, key=lambda timing: timing.latency_ms)
    return ordered[(len(ordered) - 1) // 2] if ordered else None


def median_interval(values: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Confidence interval of a median between two of the values, whatever their distribution.

    The number of values below the median is binomial (David & Nagaraja, Order Statistics, 3rd ed., 7.1). Fewer than
    six values hold no interval of 95 %: zero and infinity stand in.
    """
    ordered, n = np.sort(np.asarray(values, dtype=float)), len(values)
    below, cut = 0.5**n, 0
    while below <= (1 - confidence) / 2:
        cut += 1
        below += math.comb(n, cut) * 0.5**n
    return (float(ordered[cut - 1]), float(ordered[n - cut])) if cut else (0.0, math.inf)


def combine(first: Timing, again: Timing) -> Timing:
    """Two measurements of one model, the second loaded anew, as one whose intervals cover both."""
    return Timing(
        ratio=math.sqrt(first.ratio * again.ratio),
        latency_ms=math.sqrt(first.latency_ms * again.latency_ms),
        latency_ms_p10=min(first.latency_ms_p10, again.latency_ms_p10),
        latency_ms_p90=max(first.latency_ms_p90, again.latency_ms_p90),
        raw_ms=math.sqrt(first.raw_ms * again.raw_ms),
        rounds=first.rounds + again.rounds,
        ratio_low=min(first.ratio_low, again.ratio_low),
        ratio_high=max(first.ratio_high, again.ratio_high),
        drift=max(first.drift, again.drift, key=abs),
    )


@dataclass(frozen=True)
class Stated:
    """A latency and half the width of an interval that nine in ten repetitions in a new process fall into."""

    latency_ms: float
    error_ms: float


def stated(first: Timing, again: Timing | None, repeated: Iterable[tuple[Timing, Timing]]) -> Stated:
    """What may be said of a model that was measured, loaded anew and measured again.

    Loading a model again changes its speed: where its memory lies, what ran before it, which models share its rounds.
    No number of rounds of one instance shows that, repetitions do. The interval is the conformal bound on how far
    two measurements of one model lie apart (Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005);
    the mean of both, which is stated, lies nearer to a third one than either.

    Args:
        first: The first measurement.
        again: The second; without one the first is stated with its 10-90 % spread over rounds.
        repeated: Both measurements of every model under the same workload on the same device.
    """
    if again is None:
        return Stated(first.latency_ms, first.spread * first.latency_ms)
    apart = sorted(abs(math.log(two.latency_ms / one.latency_ms)) for one, two in repeated)
    bound = apart[min(math.ceil((len(apart) + 1) * COVERAGE), len(apart)) - 1]
    latency_ms = math.sqrt(first.latency_ms * again.latency_ms)
    return Stated(latency_ms, latency_ms * bound)


def max_drift(precision: float) -> float:
    """How far an anchor may be from its reference: less than the wanted precision is no disturbance."""
    return max(MAX_DRIFT, precision)


def noise_warning(timings: Mapping[str, Timing], precision: float) -> str:
    """What must be said of timings that were to have a precision; empty where all is well.

    An anchor more than `max_drift` away from its reference is named too: ratios are to anchors nearby, but a machine
    that changes so much treats models unevenly. Where others take turns on its cores, short calls fit between them and
    long ones do not: a ratio is then as wrong as it is repeatable.
    """
    said = []
    models = {name: timing for name, timing in timings.items() if name != ANCHOR} or timings
    missed = {name: timing for name, timing in models.items() if timing.precision > precision}
    if missed:
        name, worst = max(missed.items(), key=lambda item: item[1].precision)
        said.append(
            f"{len(missed)} of {len(models)} latencies are known less well than within {precision:.1%}; the worst, "
            f"{name}, within {worst.precision:.1%} after {worst.rounds} rounds (10-90 % spread {worst.spread:.0%})"
        )
    drift = max((timing.drift for timing in timings.values()), key=abs, default=0.0)
    if abs(drift) > max_drift(precision):
        said.append(f"the anchor took {abs(drift):.0%} {'more' if drift > 0 else 'less'} than its reference")
    return "; ".join(said)

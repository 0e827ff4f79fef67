"""Metrics and costs: their names and directions, bounds on them, and how their values are printed."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from search_spaces.dimensions import COST_DIMENSIONS
from search_spaces.errors import InputError

Direction = Literal["maximize", "minimize"]
Verdict = Literal["holds", "misses", "undecided"]
"""What a measured value says about a bound; ``undecided``: it cannot be told apart from the bound in this noise."""

FOOTPRINTS = ("memory_mb", "energy_mj", "load_ms", "first_inference_ms")
"""Costs that a process of its own measures: peak memory in addition to libraries, energy of one pass, time to load
the model and of its first pass."""
COUNTED = ("num_parameters", "macs", "size_mb", "peak_activation_mb", "kv_cache_mb", *COST_DIMENSIONS)
RATES = ("samples_per_second", "tokens_per_second")
"""Costs that follow from the latency of a call: what it computes in a second; the more the better."""
COSTS = ("latency_ms", *COUNTED, *RATES, *FOOTPRINTS)
OF_WORKLOAD = frozenset(("latency_ms", *RATES, *FOOTPRINTS, "macs", "peak_activation_mb", "kv_cache_mb"))
"""Costs that differ between workloads."""
METRICS: dict[str, Direction] = {
    "accuracy": "maximize",
    "f1": "maximize",
    "entity_f1": "maximize",
    "roc_auc": "maximize",
    "top5_accuracy": "maximize",
    "mean_iou": "maximize",
    "pixel_accuracy": "maximize",
    "matthews_correlation": "maximize",
    "loss": "minimize",
    "perplexity": "minimize",
    "bits_per_byte": "minimize",
    "pearsonr": "maximize",
    "spearmanr": "maximize",
    "mean_squared_error": "minimize",
    "mean_absolute_error": "minimize",
    "r2": "maximize",
    "exact_match": "maximize",
    "rougeL": "maximize",
    "sacrebleu": "maximize",
    "wer": "minimize",
    "cer": "minimize",
    "spearman": "maximize",
    "cosine_similarity": "maximize",
    "top10_agreement": "maximize",
    "ndcg10": "maximize",
    "mrr10": "maximize",
    "recall10": "maximize",
    "map": "maximize",
    "map50": "maximize",
}
INF = math.inf
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("accuracy", "f1", "exact_match", "rougeL", "mean_iou", "pixel_accuracy"), (0.0, 1.0)),
    **dict.fromkeys(("top10_agreement", "ndcg10", "mrr10", "recall10", "map", "map50"), (0.0, 1.0)),
    **dict.fromkeys(("matthews_correlation", "pearsonr", "spearmanr", "spearman", "cosine_similarity"), (-1.0, 1.0)),
    **dict.fromkeys(("loss", "bits_per_byte", "mean_squared_error", "mean_absolute_error", "wer", "cer"), (0.0, INF)),
    "perplexity": (1.0, INF),
    "r2": (-INF, 1.0),
    "sacrebleu": (0.0, 100.0),
}
"""Metric -> the least and the greatest value that it can have."""
LEAST_COST = 1e-6
"""No cost is less, in its unit."""
DIRECTIONS: dict[str, Direction] = {
    **METRICS,
    **dict.fromkeys(COSTS, "minimize"),
    **dict.fromkeys(RATES, "maximize"),
}
"""Metric or cost -> the direction that improves it; a recipe's ``task.metrics`` adds metrics of its own."""

FINETUNED_SUFFIX = "_finetuned"
"""Suffix of a metric after fine-tuning; without it, the metric is that of the weights that the run verified."""
INHERITED_SUFFIX = "_inherited"
"""Suffix of a metric of a finished model with the weights that it inherited from the supernet."""

GROWS_WITH = {
    **dict.fromkeys(RATES, "latency_ms"),
    "energy_mj": "latency_ms",
    "first_inference_ms": "latency_ms",
    "memory_mb": "size_mb",
    "load_ms": "size_mb",
}
"""Measured cost -> the cost whose reduction improves it too."""
AT = "@"
"""Between a cost and the name of its workload, as in ``latency_ms@phone``; a run's only workload has no name."""


def cost_name(cost: str, workload: str = "") -> str:
    """The name of a cost under a workload: ``latency_ms@phone``; without a name, or if it does not differ, its own."""
    return f"{cost}{AT}{workload}" if workload and cost in OF_WORKLOAD else cost


def base_name(name: str) -> str:
    """A metric or cost without the name of a workload."""
    return name.partition(AT)[0]


def workload_of(name: str) -> str:
    """The workload that the name of a cost has behind its @; empty without one."""
    return name.partition(AT)[2]


def reduced_costs(names: Iterable[str]) -> frozenset[str]:
    """What reduces these costs: their own names without workloads, and the costs that they grow with."""
    own = frozenset(map(base_name, names))
    return own | {GROWS_WITH[name] for name in own & GROWS_WITH.keys()}


def is_cost(name: str) -> bool:
    """Whether a name is that of a cost, under any workload."""
    return base_name(name) in COSTS


OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
"""Operator of a bound -> its comparison."""

_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_NUMBER = rf"(?:{_DIGITS}\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_BOUND = rf"\s*(<=|>=|==|<|>)\s*([-+]?{_NUMBER})\s*"
_OF_PARENT = rf"\s*(<=|>=|==|<|>)\s*(?:({_NUMBER})\s*%|parent(?:\s*([-+])\s*({_NUMBER}))?)\s*"


@dataclass(frozen=True)
class Bound:
    """A bound on a value, or two.

    Attributes:
        op: One of `OPERATORS`.
        value: The limit, in the unit of the value; with a share, what is added to that share of the parent's value.
        share: The share of the parent's value in the limit; 0 if the limit is a number.
        also: A second bound on the same value.
    """

    op: str
    value: float
    share: float = 0.0
    also: Bound | None = None

    @classmethod
    def parse(cls, text: str) -> Bound:
        """Reads a text like ``"<= 40"``, ``"<= 50%"``, ``">= parent - 0.01"`` or two of them with a comma.

        Raises:
            InputError: If the text is something else.
        """
        first, comma, second = text.partition(",")
        return replace(cls._parse_one(first), also=cls._parse_one(second)) if comma else cls._parse_one(first)

    @classmethod
    def _parse_one(cls, text: str) -> Bound:
        if (match := re.fullmatch(_BOUND, text)) and math.isfinite(float(match[2])):
            return cls(match[1], float(match[2]))
        if match := re.fullmatch(_OF_PARENT, text):
            share = 1.0 if match[2] is None else float(match[2]) / 100
            offset = float(f"{match[3]}{match[4]}") if match[3] else 0.0
            if 0 < share < INF and math.isfinite(offset):
                return cls(match[1], offset, share)
        raise InputError(
            f"A bound must be one of {' '.join(OPERATORS)} and a number, a percentage of the parent's value or "
            f"`parent` plus or minus a number, but got `{text}`: try `<= 40`, `<= 50%` or `>= parent - 0.01`."
        )

    @property
    def parts(self) -> tuple[Bound, ...]:
        """The bound, or both."""
        return (self,) if self.also is None else (replace(self, also=None), self.also)

    @property
    def is_relative(self) -> bool:
        """Whether it is in terms of the parent's value."""
        return any(part.share for part in self.parts)

    def resolve(self, parent: float) -> Bound:
        """The bound as numbers, given the parent's value."""
        also = None if self.also is None else self.also.resolve(parent)
        return Bound(self.op, self.value + self.share * parent, also=also)

    @property
    def upper(self) -> float:
        """The most that a value may be; infinite if nothing is."""
        return min((part.value for part in self.parts if part.op[0] in "<="), default=INF)

    def is_possible(self, name: str) -> bool:
        """Whether a built-in metric or a cost can have a value that satisfies the bound; costs are above 0.

        A bound in terms of the parent is taken as possible.
        """
        if self.is_relative:
            return True
        least, greatest = RANGES.get(name, (LEAST_COST if is_cost(name) else -INF, INF))
        limits = [part.value for part in self.parts]
        nearest = [least, greatest, *limits, sum(limits) / len(limits)]
        return any(least <= value <= greatest and self.violation(value) <= 0 for value in nearest)

    def violation(self, value: float) -> float:
        """How far a value violates the bound, in the unit of the value; zero or less if and only if the bound holds.

        A value equal to a strict bound violates it by the smallest positive number, NaN by infinity.

        Raises:
            ValueError: If the bound is in terms of the parent: `resolve` it first.
        """
        if self.is_relative:
            raise ValueError(f"the bound `{self}` is in terms of the parent's value, which is not given")
        return max(part._violation(value) for part in self.parts)

    def _violation(self, value: float) -> float:
        if math.isnan(value):
            return math.inf
        if self.op == "==":
            return abs(value - self.value)
        excess = value - self.value if self.op[0] == "<" else self.value - value
        return math.ulp(0.0) if excess == 0 and len(self.op) == 1 else excess

    def verdict(self, value: float, error: float = 0.0) -> Verdict:
        """Whether a measured value satisfies the bound, given half the width of its interval, in the same unit.

        It holds if it does for all of the interval, and misses if it does for none of it.
        """
        verdicts = [part._verdict(value, error) for part in self.parts]
        return "misses" if "misses" in verdicts else "undecided" if "undecided" in verdicts else "holds"

    def _verdict(self, value: float, error: float) -> Verdict:
        ends = [self._violation(value - error) <= 0, self._violation(value + error) <= 0]
        if self.op == "==" and abs(value - self.value) <= error > 0:
            return "undecided"
        return "holds" if all(ends) else "undecided" if any(ends) else "misses"

    @property
    def exact(self) -> str:
        """The bound as text that `parse` reads back exactly."""
        return ", ".join(part._text(float.__repr__) for part in self.parts)

    def __str__(self) -> str:
        return ", ".join(part._text("{:g}".format) for part in self.parts)

    def _text(self, number: Callable[[float], str]) -> str:
        if not self.share:
            return f"{self.op} {number(self.value)}"
        if self.value == 0 and self.share != 1:
            return f"{self.op} {number(100 * self.share)}%"
        offset = f" {'-' if self.value < 0 else '+'} {number(abs(self.value))}" if self.value else ""
        return f"{self.op} parent{offset}"


def parse_condition(text: str) -> tuple[str, Bound]:
    """Reads a condition like ``"latency_ms <= 5"`` into the name of a metric or cost and its bound.

    Raises:
        InputError: If the text is not a name, an operator and a number.
    """
    match = re.fullmatch(rf"\s*([A-Za-z_][\w./@-]*){_BOUND}", text)
    if not match or not math.isfinite(float(match[3])):
        raise InputError(
            f"A condition must be a metric or cost, one of {' '.join(OPERATORS)} and a number, but got `{text}`: "
            "try `latency_ms <= 5`; separate several by commas."
        )
    return match[1], Bound(match[2], float(match[3]))


def format_value(name: str, value: float, error: float | None = None) -> str:
    """A metric or cost as text, without its unit, followed by ``± error`` if an error is given.

    Times (``*_ms``), energies (``*_mj``), rates (``*_per_second``) and sizes (``*_mb``) have three significant digits,
    sizes at least one decimal. Counts (``num_*``, ``macs``) have a K, M, G or B suffix, values of dimensions are
    integers. Everything else has four decimals. An error that would round to zero has one significant digit; one that
    is zero is not known, and is left out.
    """
    name = base_name(name)
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    if name in COST_DIMENSIONS:
        return f"{value:.0f}"
    if name.startswith("num_") or name in ("macs", "flops"):
        giga = "B" if name.startswith("num_") else "G"
        for unit, suffix in ((1e9, giga), (1e6, "M"), (1e3, "K")):
            if abs(value) >= unit:
                return f"{value / unit:.2f}{suffix}"
        return f"{value:g}"
    decimals = 4
    if name.endswith(("_ms", "_mb", "_mj", "_per_second")):
        least = int(name.endswith("_mb"))
        decimals = max(least, 2 - math.floor(math.log10(abs(value)))) if value else least
    if not error:
        return f"{value:.{decimals}f}"
    rounded = f"{error:.{decimals}f}"
    return f"{value:.{decimals}f} ± {rounded if float(rounded) else f'{error:.1g}'}"


def total_violation(values: Mapping[str, float], bounds: Mapping[str, Bound]) -> float:
    """The sum of all violations, each relative to its bound; 0 if all bounds hold."""
    violations = {name: bound.violation(values.get(name, math.nan)) for name, bound in bounds.items()}
    return sum(max(violations[name], 0.0) / (abs(bound.value) or 1.0) for name, bound in bounds.items())


def against_bounds(values: Mapping[str, float], bounds: Mapping[str, Bound]) -> str:
    """Each bounded value next to its bound, such as ``latency_ms 5.2 for `<= 5` ``."""
    return ", ".join(f"{name} {values.get(name, math.nan):.4g} for `{bound}`" for name, bound in bounds.items())

"""Point: a subnetwork with its metrics and costs."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from search_spaces.subnet import SubnetConfig

ParentRuntime = Literal["parent-torch", "parent-compile", "parent-onnxruntime", "parent-openvino"]
Source = Literal["search", "uniform", "random", "layer-drop", "int8", "parent-int8", "parent", ParentRuntime]
"""Where a point comes from: the search, a baseline, an int8 twin, or the parent, also in another runtime."""
PARENT_RUNTIMES: tuple[ParentRuntime, ...] = get_args(ParentRuntime)


@dataclass(frozen=True)
class Point:
    """A subnetwork with its metrics and costs.

    Attributes:
        subnet: The subnetwork.
        values: Metric or cost -> value, e.g. ``accuracy``, ``latency_ms``, ``num_parameters``, ``macs``, ``size_mb``.
        errors: Metric or cost -> spread, in the same unit. For a metric, the standard error. For a measured latency,
            half the width of the interval that holds 90 % of repetitions in a new process; for a predicted one, of the
            interval that holds 90 % of measurements. Exact values and values of unknown spread are absent.
        source: ``search``; a baseline (``uniform``, ``random``, ``layer-drop``, which is trained where it is
            ``finished`` and has the supernet's weights elsewhere); ``int8``, a finished model with int8
            layers; ``parent``; ``parent-int8``, the parent with int8 layers; or the parent in another runtime.
        measured: True: latency measured on the exported model, metrics on the held-out split. False: latency
            predicted, metrics on the search split.
        feasible: Whether it satisfies every constraint.
        undecided: Constrained costs that cannot be told apart from their bound, as it lies in the value's interval;
            ``feasible`` goes by the value.
        predicted: Whether the latency of a measured point is still predicted, because the run's device is another one
            that has not measured the front yet.
        finished: Whether it was trained on after the search, or is the int8 twin of a model that was; else its weights
            are the supernet's.
    """

    subnet: SubnetConfig
    values: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    source: Source = "search"
    measured: bool = False
    feasible: bool = True
    predicted: bool = False
    undecided: tuple[str, ...] = ()
    finished: bool = False

    @property
    def key(self) -> str:
        """The key of the subnetwork."""
        return self.subnet.key

    @property
    def origin(self) -> str:
        """Its source as tables name it: layer dropping says where it was not trained."""
        return f"{self.source} (not trained)" if self.source == "layer-drop" and not self.finished else self.source

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "key": self.key, "subnet": self.subnet.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Point:
        """Reads back what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: If it is something else.
        """
        rest = {name: value for name, value in data.items() if name not in ("key", "subnet")}
        rest["undecided"] = tuple(rest.get("undecided", ()))
        point = cls(subnet=SubnetConfig.from_dict(data["subnet"]), **rest)
        require_numbers("values", point.values)
        require_numbers("errors", point.errors)
        if data.get("key", point.key) != point.key:
            raise ValueError(f"`key` must be {point.key}, that of the subnetwork, but is {data['key']!r}")
        if point.source not in get_args(Source):
            raise ValueError(f"`source` must be one of {', '.join(get_args(Source))}, but is {point.source!r}")
        return point


def require_numbers(name: str, values: Any) -> None:
    """Raises TypeError unless these are numbers by name; NaN and infinities are numbers."""
    if not (isinstance(values, dict) and all(type(value) in (int, float) for value in values.values())):
        raise TypeError(f"`{name}` must be numbers by name, but are {str(values)[:60]}")
    if wrong := [key for key in values if not re.fullmatch(r"[A-Za-z_][\w./@-]*", key)]:
        raise ValueError(f"`{name}` must have names of metrics and costs, but has {wrong[0][:60]!r}")

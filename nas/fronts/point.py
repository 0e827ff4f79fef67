"""Point: one subnetwork with every figure known of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from search_spaces.subnet import SubnetConfig

Source = Literal["search", "uniform", "random", "parent"]


@dataclass(frozen=True)
class Point:
    """One subnetwork with every figure known of it.

    Attributes:
        subnet: The subnetwork.
        values: Figure name to value, e.g. ``accuracy``, ``latency_ms``, ``num_parameters``, ``macs``, ``size_mb``.
        errors: Spread of a figure in its own unit: the standard error of a quality; of a latency, half the
            width of the interval that nine in ten repetitions in a new process fall into (measured), or nine in ten
            measurements (predicted). A figure that is exact, or whose spread is unknown, is absent.
        source: Who proposed it: the search, a baseline (``uniform``, ``random``), or the ``parent`` itself.
        measured: True: latency measured on the exported model, quality on the held-out split. False: latency
            predicted, quality on the search split.
        feasible: Whether it keeps every constraint.
        predicted: Whether the latency of a measured point is a prediction nonetheless: of a run whose device is
            elsewhere, until its front is measured there.
    """

    subnet: SubnetConfig
    values: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    source: Source = "search"
    measured: bool = False
    feasible: bool = True
    predicted: bool = False

    @property
    def key(self) -> str:
        """The key of the subnetwork."""
        return self.subnet.key

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "key": self.key, "subnet": self.subnet.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Point:
        """Reads back what `to_dict` wrote."""
        rest = {name: value for name, value in data.items() if name not in ("key", "subnet")}
        return cls(subnet=SubnetConfig.from_dict(data["subnet"]), **rest)

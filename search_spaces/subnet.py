"""SubnetConfig: one point of a search space, as a value."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from search_spaces.errors import InputError

PER_LAYER = ("num_attention_heads", "intermediate_size")
"""Fields that hold one value per kept layer, named as in Hugging Face configs."""


@dataclass(frozen=True)
class SubnetConfig:
    """Which layers of the parent stay, and how wide each of them is.

    Attributes:
        layers: Indices of the kept parent layers, ascending.
        num_attention_heads: Attention heads of each kept layer; same length as ``layers``.
        intermediate_size: Feed-forward neurons of each kept layer; same length as ``layers``.

    Raises:
        InputError: If the lengths differ, a layer repeats, or nothing is kept.
    """

    layers: tuple[int, ...]
    num_attention_heads: tuple[int, ...]
    intermediate_size: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise InputError(f"`layers` must be ascending and not empty, but got {list(self.layers)}.")
        for field in PER_LAYER:
            values = getattr(self, field)
            if len(values) != len(self.layers) or min(values) < 1:
                raise InputError(
                    f"`{field}` must hold one positive value for each of the {len(self.layers)} kept layers, "
                    f"but got {list(values)}."
                )

    @classmethod
    def uniform(cls, layers: tuple[int, ...], *, num_attention_heads: int, intermediate_size: int) -> SubnetConfig:
        """The subnetwork whose kept layers all have the same widths."""
        n = len(layers)
        return cls(tuple(sorted(layers)), (num_attention_heads,) * n, (intermediate_size,) * n)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SubnetConfig:
        """Reads back what `to_dict` wrote."""
        return cls(**{name: tuple(int(v) for v in data[name]) for name in ("layers", *PER_LAYER)})

    def to_dict(self) -> dict[str, list[int]]:
        """Plain lists, ready for JSON."""
        return {name: list(values) for name, values in asdict(self).items()}

    @cached_property
    def key(self) -> str:
        """Ten hexadecimal digits that identify this subnetwork in files and folders."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:10]

    @property
    def num_hidden_layers(self) -> int:
        """How many layers stay."""
        return len(self.layers)

    @property
    def is_uniform(self) -> bool:
        """Whether all kept layers have the same widths."""
        return all(len(set(getattr(self, field))) == 1 for field in PER_LAYER)

    @property
    def parts(self) -> dict[str, str]:
        """What it consists of, in words: one number where all layers are alike."""
        widths = {"heads": self.num_attention_heads, "ffn": self.intermediate_size}
        alike = {name: str(v[0]) if len(set(v)) == 1 else ",".join(map(str, v)) for name, v in widths.items()}
        return {"layers": ",".join(map(str, self.layers)), **alike}

    def __str__(self) -> str:
        return " · ".join(f"{name} {value}" for name, value in self.parts.items())

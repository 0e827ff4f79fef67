"""SubnetConfig: one point of a search space, as a value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from search_spaces.dimension import FULL
from search_spaces.dimensions import BLOCKS, DIMENSIONS, OF_INPUTS, PER_LAYER, PER_SUBNET, WIDTH_OF
from search_spaces.errors import InputError, did_you_mean

FIELDS = tuple(name for name in DIMENSIONS if name in (*PER_LAYER, *PER_SUBNET))
"""Dimensions that are attributes of a subnetwork; those with a default last."""
REQUIRED = tuple(n for n in FIELDS if DIMENSIONS[n].neutral is None and not DIMENSIONS[n].depends_on)
NUMERIC = tuple(name for name in PER_LAYER if not DIMENSIONS[name].is_categorical)
"""Per-layer dimensions whose values are numbers."""


SIZES = tuple(name for name in PER_SUBNET if DIMENSIONS[name].axes)
"""Dimensions of the subnetwork that are sizes of weights."""


class SubnetConfig:
    """One subnetwork: which layers of the parent stay, and a value of every dimension. Immutable and hashable.

    It has an attribute for each dimension of `search_spaces.dimensions`: a tuple with one value per kept layer, or one
    value for the subnetwork. Layers of an encoder-decoder are numbered encoder first, then decoder.

    Args:
        layers: Indices of the kept parent layers, ascending.
        required: Values of the dimensions without a default: attention heads, feed-forward neurons (0 where a layer
            skips the block) and the hidden size.
        values: The same by name, and those of any other dimension; by default such a dimension changes nothing.

    Attributes:
        layers: Indices of the kept parent layers, ascending.

    Raises:
        InputError: If a dimension is unknown, the lengths differ, a layer repeats or has neither block, a value is
            impossible or does not fit the others, or no layer is kept.
    """

    layers: tuple[int, ...]

    def __init__(self, layers: Sequence[int], *required: Any, **values: Any) -> None:
        given = {**dict(zip(REQUIRED, required, strict=False)), **values}
        if len(required) > len(REQUIRED) or any(name not in given for name in REQUIRED):
            raise InputError(
                f"a subnetwork takes `layers`, {', '.join(REQUIRED)}, and everything else by name, but got {required} "
                f"and {values}."
            )
        if unknown := [name for name in given if name not in FIELDS]:
            raise InputError(f"`{unknown[0]}` is no dimension of a subnetwork; {did_you_mean(unknown[0], FIELDS)}")
        self.__dict__["layers"] = tuple(layers)
        if not layers or list(layers) != sorted(set(layers)):
            raise InputError(f"`layers` must be ascending and not empty, but got {list(layers)}.")
        for name in FIELDS:
            self.__dict__[name] = self._value(name, given.get(name, ()))
        self._check()

    def _value(self, name: str, given: Any) -> Any:
        """The value of a dimension, or those of its layers."""
        dimension = DIMENSIONS[name]
        default = dimension.default(self.__dict__)
        if name in PER_SUBNET:
            return dimension.parse(default if given == () else given)
        values = given if given != () else default
        values = (values,) * len(self.layers) if values == dimension.neutral else tuple(values)
        values = tuple(map(dimension.parse, values))
        if len(values) != len(self.layers) or (name in NUMERIC and min(values) < 0):
            raise InputError(
                f"`{name}` must hold one value for each of the {len(self.layers)} kept layers, none below 0, but got "
                f"{list(values)}."
            )
        if name in WIDTH_OF and dimension.neutral is not None:
            widths = getattr(self, WIDTH_OF[name])
            values = tuple(v if width else dimension.if_skipped for v, width in zip(values, widths, strict=True))
        return values

    def _check(self) -> None:
        for name in PER_SUBNET:
            DIMENSIONS[name].check("the subnetwork", self.__dict__)
        for position, layer in enumerate(self.layers):
            values = self._at(position)
            if not any(values[names[0]] for names in BLOCKS.values()):
                raise InputError(
                    f"a layer must keep its attention or its feed-forward block, but {layer} has neither."
                )
            for name in PER_LAYER:
                is_skipped = name in WIDTH_OF and not values[WIDTH_OF[name]]
                if not (is_skipped and values[name] == DIMENSIONS[name].if_skipped):
                    DIMENSIONS[name].check(f"layer {layer}", values)

    def _at(self, position: int) -> dict[str, Any]:
        """Per-layer dimension -> value of the kept layer at a position of ``layers``."""
        return {name: self.__dict__[name][position] for name in PER_LAYER}

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a subnetwork is immutable, but `{name}` was to be set; make another one")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SubnetConfig) and self._values == other._values

    def __hash__(self) -> int:
        return hash(self._values)

    @property
    def _values(self) -> tuple[Any, ...]:
        return (self.layers, *(self.__dict__[name] for name in FIELDS))

    def __repr__(self) -> str:
        return f"SubnetConfig({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"

    @classmethod
    def uniform(cls, layers: Sequence[int], **values: Any) -> SubnetConfig:
        """The subnetwork whose kept layers all have these values; see the class for those that may be left out."""
        per_layer = {name: (value,) * len(layers) for name, value in values.items() if name in PER_LAYER}
        return cls(tuple(sorted(layers)), **{**values, **per_layer})

    def with_values(self, **values: Any) -> SubnetConfig:
        """The same subnetwork with other ``layers`` or values of dimensions; what changes nothing still does not."""
        kept = {name: self.__dict__[name] for name in FIELDS if not self._is_neutral(name)}
        return SubnetConfig(**{"layers": self.layers, **kept, **values})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SubnetConfig:
        """The subnetwork of a dict from `to_dict`.

        Raises:
            InputError: If it has a dimension that this version does not know.
        """
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items() if name != "layers"}
        return cls(tuple(map(int, data["layers"])), **values)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, names and lists for JSON; dimensions with a default only where they differ from it."""
        shown = {name: self.__dict__[name] for name in FIELDS if not self._is_neutral(name)}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in {"layers": self.layers, **shown}.items()}

    def _is_neutral(self, name: str) -> bool:
        """Whether a dimension changes nothing."""
        dimension, value = DIMENSIONS[name], self.__dict__[name]
        values = (value,) if name in PER_SUBNET else set(value)
        return dimension.has_neutral and all(dimension.is_neutral(one, self.__dict__) for one in values)

    def changes(self, name: str) -> bool:
        """Whether a dimension with a neutral value has another one somewhere."""
        return DIMENSIONS[name].has_neutral and not self._is_neutral(name)

    @property
    def input_size(self) -> str:
        """Pieces of its vocabulary or pixels of its images, whichever differs from the parent's; else ``full``."""
        return next((value for name in OF_INPUTS if (value := self.__dict__[name]) != FULL), FULL)

    @cached_property
    def key(self) -> str:
        """Ten hexadecimal digits that identify this subnetwork in files and folders."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:10]

    @property
    def num_hidden_layers(self) -> int:
        """Number of kept layers."""
        return len(self.layers)

    @property
    def is_uniform(self) -> bool:
        """Whether all kept layers have the same values."""
        return all(len(set(self.__dict__[name])) == 1 for name in PER_LAYER)

    def layer_values(self, position: int) -> dict[str, int]:
        """Numeric values of the kept layer at a position of ``layers``, and the sizes of the subnetwork."""
        return {n: self.__dict__[n][position] for n in NUMERIC} | {n: self.__dict__[n] for n in SIZES}

    def all_values(self, position: int) -> dict[str, Any]:
        """Dimension -> value of the kept layer at a position of ``layers``, or of the subnetwork."""
        return self._at(position) | {name: self.__dict__[name] for name in PER_SUBNET}

    @property
    def parts(self) -> dict[str, str]:
        """Label -> text of each dimension; one value where all layers have the same."""
        shown = [name for name in FIELDS if not self._is_neutral(name)]
        shown = [n for n in shown if not (base := DIMENSIONS[n].depends_on) or getattr(self, n) != getattr(self, base)]
        order = sorted((n for n in shown if n in PER_LAYER), key=lambda name: name not in REQUIRED)
        texts = {DIMENSIONS[name].label: DIMENSIONS[name].text(self.__dict__[name]) for name in order}
        texts |= {DIMENSIONS[n].label: DIMENSIONS[n].text((self.__dict__[n],)) for n in shown if n in PER_SUBNET}
        return {"layers": ",".join(map(str, self.layers)), **texts}

    def _repr_html_(self) -> str:
        from search_spaces.svg import svg

        return f"<p><code>{self.key}</code> {self}</p>{svg(self)}"

    def __str__(self) -> str:
        return " · ".join(f"{name} {value}" for name, value in self.parts.items())

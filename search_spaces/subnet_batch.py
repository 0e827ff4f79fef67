"""SubnetBatch: many subnetworks of one parent as arrays, to compute costs and features of thousands at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from search_spaces.dimensions import DIMENSIONS, PER_LAYER, PER_SUBNET, WIDTH_OF
from search_spaces.subnet import SubnetConfig


@dataclass(frozen=True)
class SubnetBatch(Sequence[SubnetConfig]):
    """Subnetworks of one parent; indexing and iteration give `SubnetConfig`.

    Attributes:
        kept: Which layers of the parent stay (n, parent layers).
        layer_values: Per-layer dimension -> its value in each layer of the parent (n, parent layers), 0 where the
            layer is dropped; names are encoded as integers (`Dimension.encode`).
        subnet_values: Dimension of the subnetwork -> its values (n,).
    """

    kept: np.ndarray
    layer_values: Mapping[str, np.ndarray]
    subnet_values: Mapping[str, np.ndarray]

    @classmethod
    def from_subnets(cls, subnets: Sequence[SubnetConfig], num_layers: int) -> SubnetBatch:
        """A batch of subnetworks of a parent with ``num_layers`` layers; a `SubnetBatch` is returned unchanged."""
        if isinstance(subnets, SubnetBatch):
            return subnets
        rows = np.repeat(np.arange(len(subnets)), [subnet.num_hidden_layers for subnet in subnets])
        columns = np.array([layer for subnet in subnets for layer in subnet.layers], dtype=int)
        kept = np.zeros((len(subnets), num_layers), dtype=bool)
        kept[rows, columns] = True
        layer_values = {name: np.zeros(kept.shape, dtype=np.int64) for name in PER_LAYER}
        for name, values in layer_values.items():
            flat = [value for subnet in subnets for value in getattr(subnet, name)]
            values[rows, columns] = _encoded(name, flat)
        return cls(kept, layer_values, {n: _encoded(n, [getattr(s, n) for s in subnets]) for n in PER_SUBNET})

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> SubnetConfig: ...

    @overload
    def __getitem__(self, index: slice) -> SubnetBatch: ...

    def __getitem__(self, index: int | slice) -> SubnetConfig | SubnetBatch:
        if isinstance(index, slice):
            columns = (
                {n: values[index] for n, values in of.items()} for of in (self.layer_values, self.subnet_values)
            )
            return SubnetBatch(self.kept[index], *columns)
        layers = np.flatnonzero(self.kept[index])
        fields: dict[str, Any] = {
            name: tuple(map(DIMENSIONS[name].decode, column[index, layers].tolist()))
            for name, column in self.layer_values.items()
        }
        fields |= {name: DIMENSIONS[name].decode(int(values[index])) for name, values in self.subnet_values.items()}
        return SubnetConfig(tuple(layers.tolist()), **fields)

    def __iter__(self) -> Iterator[SubnetConfig]:
        return (self[index] for index in range(len(self)))

    def category_index(self, name: str, choices: Sequence[str]) -> np.ndarray:
        """Index of a dimension's value among ``choices``, from 1.

        Returns:
            (n, parent layers), 0 where a layer has no value; (n,) for a dimension of the subnetwork.
        """
        codes = _encoded(name, choices)
        if name in self.subnet_values:
            return 1 + (self.subnet_values[name][:, None] == codes).argmax(axis=-1)
        has_value = self.layer_values[WIDTH_OF[name]] > 0 if name in WIDTH_OF else self.kept
        return np.where(has_value, 1 + (self.layer_values[name][..., None] == codes).argmax(axis=-1), 0)

    def row_keys(self) -> list[bytes]:
        """One key per subnetwork; equal subnetworks have equal keys, different ones do not."""
        columns = [
            self.kept,
            *self.layer_values.values(),
            *(values[:, None] for values in self.subnet_values.values()),
        ]
        rows = np.concatenate(columns, axis=1).astype(np.int64)
        return [row.tobytes() for row in rows]


def _encoded(name: str, values: Sequence[Any]) -> np.ndarray:
    """Values of a dimension as integers (n,)."""
    encode = DIMENSIONS[name].encode
    return np.array([encode(v) for v in values] if DIMENSIONS[name].is_categorical else values, dtype=np.int64)

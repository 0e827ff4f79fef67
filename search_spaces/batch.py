"""SubnetBatch: many subnetworks of one parent as arrays, to compute costs and features of thousands at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from search_spaces.dimensions.attention import decode_pattern, encode_pattern
from search_spaces.dimensions.bits import BITS
from search_spaces.subnet import CATEGORICAL, GLOBAL_FIELDS, PER_LAYER, SubnetConfig

CODES: Mapping[str, tuple[Callable[[str], int], Callable[[int], str]]] = {
    "attention": (encode_pattern, decode_pattern),
    "bits": (BITS.index, BITS.__getitem__),
}
"""Field whose values are names -> encoder from name to integer, decoder from integer to name."""


@dataclass(frozen=True)
class SubnetBatch(Sequence[SubnetConfig]):
    """Subnetworks of one parent; indexing and iteration give `SubnetConfig`.

    Attributes:
        kept: Which layers of the parent stay (n, parent layers).
        layer_values: Field of `PER_LAYER` -> its value in each layer of the parent (n, parent layers), 0 where the
            layer is dropped; names are encoded as numbers (see `CODES`).
        hidden_size: Channels of the residual stream (n,).
        embedding_rank: Rank of the table of token embeddings in percent of break-even (n,).
    """

    kept: np.ndarray
    layer_values: Mapping[str, np.ndarray]
    hidden_size: np.ndarray
    embedding_rank: np.ndarray

    @classmethod
    def from_subnets(cls, subnets: Sequence[SubnetConfig], num_layers: int) -> SubnetBatch:
        """A batch of subnetworks of a parent with ``num_layers`` layers; a `SubnetBatch` is returned unchanged."""
        if isinstance(subnets, SubnetBatch):
            return subnets
        rows = np.repeat(np.arange(len(subnets)), [subnet.num_hidden_layers for subnet in subnets])
        columns = np.array([layer for subnet in subnets for layer in subnet.layers], dtype=int)
        kept = np.zeros((len(subnets), num_layers), dtype=bool)
        kept[rows, columns] = True
        layer_values = {field: np.zeros(kept.shape, dtype=np.int64) for field in PER_LAYER}
        for field, values in layer_values.items():
            flat = [value for subnet in subnets for value in getattr(subnet, field)]
            values[rows, columns] = list(map(CODES[field][0], flat)) if field in CATEGORICAL else flat
        global_values = (np.array([getattr(s, name) for s in subnets], dtype=np.int64) for name in GLOBAL_FIELDS)
        return cls(kept, layer_values, *global_values)

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> SubnetConfig: ...

    @overload
    def __getitem__(self, index: slice) -> SubnetBatch: ...

    def __getitem__(self, index: int | slice) -> SubnetConfig | SubnetBatch:
        if isinstance(index, slice):
            values = {field: column[index] for field, column in self.layer_values.items()}
            return SubnetBatch(self.kept[index], values, self.hidden_size[index], self.embedding_rank[index])
        layers = np.flatnonzero(self.kept[index])
        fields: dict[str, Any] = {
            name: tuple(column[index, layers].tolist()) for name, column in self.layer_values.items()
        }
        fields |= {name: tuple(map(CODES[name][1], fields[name])) for name in CATEGORICAL}
        fields |= {name: int(getattr(self, name)[index]) for name in GLOBAL_FIELDS}
        return SubnetConfig(tuple(layers.tolist()), **fields)

    def __iter__(self) -> Iterator[SubnetConfig]:
        return (self[index] for index in range(len(self)))

    def category_index(self, field: str, names: Sequence[str]) -> np.ndarray:
        """Index of a field's value among ``names``, from 1 (n, parent layers); 0 where the layer has no value."""
        codes = np.array([CODES[field][0](name) for name in names])
        has_value = self.layer_values["num_attention_heads"] > 0 if field == "attention" else self.kept
        return np.where(has_value, 1 + (self.layer_values[field][..., None] == codes).argmax(axis=-1), 0)

    def row_keys(self) -> list[bytes]:
        """One key per subnetwork; equal subnetworks have equal keys, different ones do not."""
        columns = [self.kept, *self.layer_values.values(), *(getattr(self, name)[:, None] for name in GLOBAL_FIELDS)]
        rows = np.concatenate(columns, axis=1).astype(np.int64)
        return [row.tobytes() for row in rows]

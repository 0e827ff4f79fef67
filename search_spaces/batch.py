"""SubnetBatch: many subnetworks of one parent as arrays, for what is computed of thousands of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from search_spaces.dimensions.attention import code_of, text_of
from search_spaces.dimensions.bits import BITS
from search_spaces.subnet import NAMED, OF_ALL, PER_LAYER, SubnetConfig

CODES: Mapping[str, tuple[Callable[[str], int], Callable[[int], str]]] = {
    "attention": (code_of, text_of),
    "bits": (BITS.index, BITS.__getitem__),
}
"""Field that holds names -> what makes numbers of them, and names of the numbers."""


@dataclass(frozen=True)
class SubnetBatch(Sequence[SubnetConfig]):
    """Subnetworks of one parent; each is a `SubnetConfig` when indexed or walked through.

    Attributes:
        kept: Which layers of the parent stay (n, parent layers).
        widths: Per-layer field -> its value in each layer of the parent (n, parent layers), 0 where it is dropped;
            names as numbers (see `CODES`).
        hidden_size: Channels of the residual stream (n,).
        embedding_rank: Rank of the table of token embeddings in percent of break-even (n,).
    """

    kept: np.ndarray
    widths: Mapping[str, np.ndarray]
    hidden_size: np.ndarray
    embedding_rank: np.ndarray

    @classmethod
    def of(cls, subnets: Sequence[SubnetConfig], num_layers: int) -> SubnetBatch:
        """Some subnetworks of a parent with so many layers; a batch as it is."""
        if isinstance(subnets, SubnetBatch):
            return subnets
        rows = np.repeat(np.arange(len(subnets)), [subnet.num_hidden_layers for subnet in subnets])
        columns = np.array([layer for subnet in subnets for layer in subnet.layers], dtype=int)
        kept = np.zeros((len(subnets), num_layers), dtype=bool)
        kept[rows, columns] = True
        widths = {field: np.zeros(kept.shape, dtype=np.int64) for field in PER_LAYER}
        for field, values in widths.items():
            of_layers = [value for subnet in subnets for value in getattr(subnet, field)]
            values[rows, columns] = list(map(CODES[field][0], of_layers)) if field in NAMED else of_layers
        of_all = (np.array([getattr(subnet, name) for subnet in subnets], dtype=np.int64) for name in OF_ALL)
        return cls(kept, widths, *of_all)

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> SubnetConfig: ...

    @overload
    def __getitem__(self, index: slice) -> SubnetBatch: ...

    def __getitem__(self, index: int | slice) -> SubnetConfig | SubnetBatch:
        if isinstance(index, slice):
            widths = {field: values[index] for field, values in self.widths.items()}
            return SubnetBatch(self.kept[index], widths, self.hidden_size[index], self.embedding_rank[index])
        layers = np.flatnonzero(self.kept[index])
        fields: dict[str, Any] = {name: tuple(values[index, layers].tolist()) for name, values in self.widths.items()}
        fields |= {name: tuple(map(CODES[name][1], fields[name])) for name in NAMED}
        fields |= {name: int(getattr(self, name)[index]) for name in OF_ALL}
        return SubnetConfig(tuple(layers.tolist()), **fields)

    def __iter__(self) -> Iterator[SubnetConfig]:
        return (self[index] for index in range(len(self)))

    def places(self, field: str, names: Sequence[str]) -> np.ndarray:
        """Place of each name of a field among some (n, parent layers), the first is 1; 0 where there is none."""
        codes = np.array([CODES[field][0](name) for name in names])
        there = self.widths["num_attention_heads"] > 0 if field == "attention" else self.kept
        return np.where(there, 1 + (self.widths[field][..., None] == codes).argmax(axis=-1), 0)

    def fingerprints(self) -> list[bytes]:
        """The same for subnetworks that are equal, and for no others."""
        columns = [self.kept, *self.widths.values(), *(getattr(self, name)[:, None] for name in OF_ALL)]
        rows = np.concatenate(columns, axis=1).astype(np.int64)
        return [row.tobytes() for row in rows]

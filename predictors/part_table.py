"""PartTable: the parts of many subnetworks as arrays, each part that differs counted once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from predictors.parts import Blocks, Part, Parts
from search_spaces import SubnetBatch
from search_spaces.subnet import BLOCKS, OF_ALL

Value = Callable[[Part], np.ndarray]
"""Something of parts that are given as arrays: (k,) of k parts."""

MARKED_UP_TO = 2**20
"""Whole numbers below it are told apart by marking them, larger ones by sorting."""


class PartTable:
    """The parts of n subnetworks: for each place of a part the distinct ones, and which subnetwork has which.

    Args:
        parts: Counts a part.
        batch: The subnetworks.
        sequence_length: Tokens of one sample.

    Attributes:
        batch: The subnetworks.
    """

    def __init__(self, parts: Parts, batch: SubnetBatch, sequence_length: int | None) -> None:
        self.batch, self._parts, self._length = batch, parts, sequence_length
        self._groups = [self._outer()] if len(batch) else []
        for layer in range(batch.kept.shape[1]) if len(batch) else ():
            self._groups += [self._of_layer(layer, blocks) for blocks in parts.block_sets]

    def sum(self, value: Value) -> np.ndarray:
        """The sum over the parts of each subnetwork: (n,)."""
        total = np.zeros(len(self.batch))
        for part, which in self._groups:
            total += _taken(value(part), which)
        return total

    def max(self, value: Value) -> np.ndarray:
        """The largest of the parts of each subnetwork: (n,)."""
        largest = np.zeros(len(self.batch))
        for part, which in self._groups:
            np.maximum(largest, _taken(value(part), which), out=largest)
        return largest

    def _outer(self) -> tuple[Part, np.ndarray]:
        heads, starts = self.batch.widths["num_attention_heads"], np.cumsum([0, *self._parts.layout.depths])
        most = [heads[:, a:b].max(axis=1) for a, b in pairwise(starts)]
        which, rows = distinct([*(getattr(self.batch, name) for name in OF_ALL), *most])
        return _stacked([self._parts.outer(self.batch[row], self._length) for row in rows]), which

    def _of_layer(self, layer: int, blocks: Blocks) -> tuple[Part, np.ndarray]:
        kept, fields = self.batch.kept[:, layer], [field for block in blocks for field in BLOCKS[block]]
        columns = [self.batch.widths[field][:, layer] for field in fields]
        which, rows = distinct([kept, self.batch.hidden_size, *columns])
        found = []
        for subnet in (self.batch[row] for row in rows):
            position = subnet.layers.index(layer) if layer in subnet.layers else None
            here = Part() if position is None else self._parts.of_layer(subnet, position, blocks, self._length)
            found.append(here)
        return _stacked(found), which


def _stacked(parts: list[Part]) -> Part:
    return Part(*np.array(parts, dtype=float).T)


def _taken(values: np.ndarray, which: np.ndarray) -> np.ndarray:
    return values[0] if len(values) == 1 else values[which]


def distinct(columns: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """Distinct rows of a table of whole numbers of at least 0.

    Args:
        columns: Each (n,), n of at least 1.

    Returns:
        Which of the distinct rows each row is (n,), and a row that is each of them.
    """
    codes, size = np.zeros(len(columns[0]), dtype=np.int64), 1
    for column in columns:
        if (column == column[0]).all():
            continue
        place, count = _places(column.astype(np.int64))
        codes, size = codes * count + place, size * count
        if size >= MARKED_UP_TO:
            codes, size = _places(codes)
    codes, size = _places(codes)
    rows = np.zeros(size, dtype=np.int64)
    rows[codes] = np.arange(len(codes))
    return codes, rows.tolist()


def _places(values: np.ndarray) -> tuple[np.ndarray, int]:
    """The place of each value among the distinct ones, and how many there are."""
    if values.max() >= MARKED_UP_TO:
        found, place = np.unique(values, return_inverse=True)
        return place, len(found)
    seen = np.zeros(values.max() + 1, dtype=bool)
    seen[values] = True
    return (np.cumsum(seen) - 1)[values], int(seen.sum())

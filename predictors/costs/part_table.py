"""PartTable: the parts of many subnetworks as arrays, each part that differs counted once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from predictors.costs.parts import OUTER, Blocks, Part, Parts
from search_spaces import SubnetBatch
from search_spaces.subnet import BLOCKS, GLOBAL_FIELDS

Made = TypeVar("Made")

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
        heads, starts = self.batch.layer_values["num_attention_heads"], np.cumsum([0, *self._parts.layout.depths])
        most = [heads[:, a:b].max(axis=1) for a, b in pairwise(starts)]
        columns = [*(getattr(self.batch, name) for name in GLOBAL_FIELDS), *most]
        return self._counted((OUTER,), columns, lambda row: self._parts.outer(self.batch[row], self._length))

    def _of_layer(self, layer: int, blocks: Blocks) -> tuple[Part, np.ndarray]:
        def count(row: int) -> Part:
            subnet = self.batch[row]
            if layer not in subnet.layers:
                return Part()
            return self._parts.of_layer(subnet, subnet.layers.index(layer), blocks, self._length)

        widths = [self.batch.layer_values[field][:, layer] for block in blocks for field in BLOCKS[block]]
        return self._counted((layer, blocks), [self.batch.kept[:, layer], self.batch.hidden_size, *widths], count)

    def _counted(self, key: Any, columns: list[np.ndarray], count: Callable[[int], Part]) -> tuple[Part, np.ndarray]:
        found, which = made_once(self._parts.tabled, (self._length, key), columns, count)
        return Part(*np.array(found, dtype=float).T), which


def _taken(values: np.ndarray, which: np.ndarray) -> np.ndarray:
    return values[0] if len(values) == 1 else values[which]


def made_once(
    known: dict[Any, Made], key: Any, columns: list[np.ndarray], make: Callable[[int], Made]
) -> tuple[list[Made], np.ndarray]:
    """What is made of each distinct row of a table, from one such row.

    Args:
        known: What was made before, of other tables too, by ``key`` and all values of the row; what is made is added.
        key: Tells tables of other columns apart.
        columns: As those of `distinct`.
        make: Number of a row -> what is made of it.

    Returns:
        What was made of the distinct rows, and which of them each row is (n,).
    """
    which, rows = distinct(columns)
    found = []
    for row, values in zip(rows, zip(*(column[rows].tolist() for column in columns), strict=True), strict=True):
        if (key, values) not in known:
            known[key, values] = make(row)
        found.append(known[key, values])
    return found, which


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

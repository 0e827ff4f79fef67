"""CostTable: the parts of many subnetworks as arrays, each part that differs counted once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from predictors.costs.block_costs import OUTSIDE_LAYERS, BlockCost, BlockCosts, Blocks
from search_spaces import SubnetBatch
from search_spaces.dimensions import BLOCKS
from search_spaces.layout import OUTSIDE
from search_spaces.subnet import SIZES

T = TypeVar("T")

Value = Callable[[BlockCost], np.ndarray]
"""Something of parts that are given as arrays: (k,) of k parts."""

BUCKET_LIMIT = 2**20
"""Whole numbers below it are told apart by marking them, larger ones by sorting."""


class CostTable:
    """The parts of n subnetworks: for each place of a part the distinct ones, and which subnetwork has which.

    Args:
        parts: Counts a part.
        batch: The subnetworks.
        sequence_length: Tokens of one sample.

    Attributes:
        batch: The subnetworks.
    """

    def __init__(self, parts: BlockCosts, batch: SubnetBatch, sequence_length: int | None) -> None:
        self.batch, self._parts, self._length = batch, parts, sequence_length
        self._groups = [self._outside_layers()] if len(batch) else []
        for layer in range(batch.kept.shape[1]) if len(batch) else ():
            self._groups += [self._in_layer(layer, blocks) for blocks in parts.block_sets]

    def sum(self, value: Value) -> np.ndarray:
        """The sum over the parts of each subnetwork: (n,)."""
        total = np.zeros(len(self.batch))
        for part, index in self._groups:
            total += _gather(value(part), index)
        return total

    def max(self, value: Value) -> np.ndarray:
        """The largest of the parts of each subnetwork: (n,)."""
        largest = np.zeros(len(self.batch))
        for part, index in self._groups:
            np.maximum(largest, _gather(value(part), index), out=largest)
        return largest

    def _outside_layers(self) -> tuple[BlockCost, np.ndarray]:
        starts = np.cumsum([0, *self._parts.layout.depths])
        widest = [self.batch.layer_values[name][:, a:b].max(axis=1) for name in OUTSIDE for a, b in pairwise(starts)]
        columns = [*self.batch.subnet_values.values(), *widest]
        return self._unique_costs(
            (OUTSIDE_LAYERS,), columns, lambda row: self._parts.outside_layers(self.batch[row], self._length)
        )

    def _in_layer(self, layer: int, blocks: Blocks) -> tuple[BlockCost, np.ndarray]:
        def count(row: int) -> BlockCost:
            subnet = self.batch[row]
            if layer not in subnet.layers:
                return BlockCost()
            return self._parts.in_layer(subnet, subnet.layers.index(layer), blocks, self._length)

        widths = [self.batch.layer_values[field][:, layer] for block in blocks for field in BLOCKS[block]]
        sizes = [self.batch.subnet_values[name] for name in SIZES]
        return self._unique_costs((layer, blocks), [self.batch.kept[:, layer], *sizes, *widths], count)

    def _unique_costs(
        self, key: Any, columns: list[np.ndarray], count: Callable[[int], BlockCost]
    ) -> tuple[BlockCost, np.ndarray]:
        costs, index = cached_by_row(self._parts.table_cache, (self._length, key), columns, count)
        return BlockCost(*np.array(costs, dtype=float).T), index


def _gather(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    return values[0] if len(values) == 1 else values[index]


def cached_by_row(
    cache: dict[Any, T], key: Any, columns: list[np.ndarray], make: Callable[[int], T]
) -> tuple[list[T], np.ndarray]:
    """What is made of each distinct row of a table, from one such row.

    Args:
        cache: What was made before, of other tables too, by ``key`` and all values of the row; what is made is added.
        key: Tells tables of other columns apart.
        columns: As those of `unique_rows`.
        make: Number of a row -> what is made of it.

    Returns:
        What was made of the distinct rows, and which of them each row is (n,).
    """
    index, rows = unique_rows(columns)
    values_of_rows = []
    for row, values in zip(rows, zip(*(column[rows].tolist() for column in columns), strict=True), strict=True):
        if (key, values) not in cache:
            cache[key, values] = make(row)
        values_of_rows.append(cache[key, values])
    return values_of_rows, index


def unique_rows(columns: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
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
        code, count = _codes(column.astype(np.int64))
        codes, size = codes * count + code, size * count
        if size >= BUCKET_LIMIT:
            codes, size = _codes(codes)
    codes, size = _codes(codes)
    rows = np.zeros(size, dtype=np.int64)
    rows[codes] = np.arange(len(codes))
    return codes, rows.tolist()


def _codes(values: np.ndarray) -> tuple[np.ndarray, int]:
    """The place of each value among the distinct ones, and how many there are."""
    if values.max() >= BUCKET_LIMIT:
        unique, code = np.unique(values, return_inverse=True)
        return code, len(unique)
    seen = np.zeros(values.max() + 1, dtype=bool)
    seen[values] = True
    return (np.cumsum(seen) - 1)[values], int(seen.sum())

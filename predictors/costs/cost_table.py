"""CostTable: block costs of many subnetworks as arrays; equal blocks are counted once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from predictors.costs.block_costs import OUTSIDE_LAYERS, BlockCost, BlockCosts, Blocks
from search_spaces import SubnetBatch
from search_spaces.dimensions import BLOCKS, OF_INPUTS
from search_spaces.layout import OUTSIDE
from search_spaces.subnet import SIZES

T = TypeVar("T")

Value = Callable[[BlockCost], np.ndarray]
"""Function of k block costs, given as arrays: returns (k,) values."""

BUCKET_LIMIT = 2**20
"""Below this value, integers are made unique by marking them in a table; above, by sorting."""


class CostTable:
    """Block costs of n subnetworks: for each block the distinct costs, and the index of each subnetwork into them.

    Args:
        block_costs: Counts the costs of a block.
        batch: The subnetworks.
        sequence_length: Tokens per sample.

    Attributes:
        batch: The subnetworks.
    """

    def __init__(self, block_costs: BlockCosts, batch: SubnetBatch, sequence_length: int | None) -> None:
        self.batch, self._block_costs, self._length = batch, block_costs, sequence_length
        self._groups = [self._outside_layers()] if len(batch) else []
        for layer in range(batch.kept.shape[1]) if len(batch) else ():
            self._groups += [self._in_layer(layer, blocks) for blocks in block_costs.block_sets]

    def sum(self, value: Value) -> np.ndarray:
        """The sum over the blocks of each subnetwork: (n,)."""
        total = np.zeros(len(self.batch))
        for cost, index in self._groups:
            total += _gather(value(cost), index)
        return total

    def max(self, value: Value) -> np.ndarray:
        """The maximum over the blocks of each subnetwork: (n,)."""
        largest = np.zeros(len(self.batch))
        for cost, index in self._groups:
            np.maximum(largest, _gather(value(cost), index), out=largest)
        return largest

    def _outside_layers(self) -> tuple[BlockCost, np.ndarray]:
        starts = np.cumsum([0, *self._block_costs.layout.depths])
        widest = [self.batch.layer_values[name][:, a:b].max(axis=1) for name in OUTSIDE for a, b in pairwise(starts)]
        columns = [*self.batch.subnet_values.values(), *widest]
        return self._unique_costs(
            (OUTSIDE_LAYERS,), columns, lambda row: self._block_costs.outside_layers(self.batch[row], self._length)
        )

    def _in_layer(self, layer: int, blocks: Blocks) -> tuple[BlockCost, np.ndarray]:
        def count(row: int) -> BlockCost:
            subnet = self.batch[row]
            if layer not in subnet.layers:
                return BlockCost()
            return self._block_costs.in_layer(subnet, subnet.layers.index(layer), blocks, self._length)

        widths = [self.batch.layer_values[field][:, layer] for block in blocks for field in BLOCKS[block]]
        sizes = [self.batch.subnet_values[name] for name in (*SIZES, *OF_INPUTS)]
        return self._unique_costs((layer, blocks), [self.batch.kept[:, layer], *sizes, *widths], count)

    def _unique_costs(
        self, key: Any, columns: list[np.ndarray], count: Callable[[int], BlockCost]
    ) -> tuple[BlockCost, np.ndarray]:
        costs, index = cached_by_row(self._block_costs.table_cache, (self._length, key), columns, count)
        return BlockCost(*np.array(costs, dtype=float).T), index


def _gather(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    return values[0] if len(values) == 1 else values[index]


def cached_by_row(
    cache: dict[Any, T], key: Any, columns: list[np.ndarray], make: Callable[[int], T]
) -> tuple[list[T], np.ndarray]:
    """Calls a function once for each unique row of a table.

    Args:
        cache: Previous results by ``key`` and the values of the row; new results are added.
        key: Tells apart tables with different columns.
        columns: Columns of the table, as in `unique_rows`.
        make: Function of the index of a row.

    Returns:
        The results of the unique rows, and the index into them of each row (n,).
    """
    index, rows = unique_rows(columns)
    values_of_rows = []
    for row, values in zip(rows, zip(*(column[rows].tolist() for column in columns), strict=True), strict=True):
        if (key, values) not in cache:
            cache[key, values] = make(row)
        values_of_rows.append(cache[key, values])
    return values_of_rows, index


def unique_rows(columns: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """Unique rows of a table of integers of at least 0.

    Args:
        columns: Arrays (n,), n of at least 1.

    Returns:
        For each row the index of its unique row (n,), and for each unique row the index of a row with its values.
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
    """Index of each value among the unique values, and their number."""
    if values.max() >= BUCKET_LIMIT:
        unique, code = np.unique(values, return_inverse=True)
        return code, len(unique)
    seen = np.zeros(values.max() + 1, dtype=bool)
    seen[values] = True
    return (np.cumsum(seen) - 1)[values], int(seen.sum())

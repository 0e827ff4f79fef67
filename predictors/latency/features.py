"""Features of subnetworks that latency models are fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from predictors.latency.work_features import work_feature_names, work_features
from search_spaces import SearchSpace, SubnetBatch, SubnetConfig
from search_spaces.dimension import Rank
from search_spaces.dimensions import BLOCKS, DIMENSIONS, NO_BLOCK, PER_SUBNET, WIDTH_OF

WIDTHS = tuple(names[0] for names in BLOCKS.values())
RANK_OF = {width: name for name, width in WIDTH_OF.items() if isinstance(DIMENSIONS[name], Rank)}
"""Width of a block -> the rank of its linear layers."""
SIZE = next(name for name in PER_SUBNET if DIMENSIONS[name].axes)
"""The size of the subnetwork that multiplies all other columns."""
HIDDEN_PREFIX = f"{SIZE}*"
"""Prefix of the columns that are multiplied by it."""


def feature_names(space: SearchSpace) -> tuple[str, ...]:
    """Names of the columns of `features`.

    For each stack its depth, the sum of each size over its layers, then each step between two choices of a size, one
    for each rank that its block may have; then each other rank and name of the subnetwork and its choices; and all of
    them again times the hidden size, where that is searched. Last, the columns of `work_features`.
    """
    names: list[str] = []
    for stack, depth in enumerate(space.depth_names):
        prefix, in_blocks = f"{depth} " if space.has_stages else "decoder " * stack, _block_fields(space)
        steps = [
            f"{prefix}{name}{f'@{rank}' * bool(rank)}:{low}-{high}"
            for name in in_blocks
            for rank in _block_ranks(space, name)
            for low, high in pairwise(space.choices[name])
        ]
        of_layers = [
            f"{prefix}{name}*{of}:{choice}"
            for name in _layer_categories(space)
            for choice in space.choices[name]
            for of in ("layers", *WIDTHS)
        ]
        names += [depth, *(prefix + name for name in in_blocks), *steps, *of_layers]
    for name, ranks in _subnet_ranks(space).items():
        names += [name, *(f"{name}:{rank}" for rank in ranks)]
    names += [f"{name}:{choice}" for name in _subnet_categories(space) for choice in space.choices[name][:-1]]
    if len(space.choices[SIZE]) > 1:
        names += [f"{HIDDEN_PREFIX}{name}" for name in names]
    return (*names, *work_feature_names(space))


def features(space: SearchSpace, subnets: Sequence[SubnetConfig]) -> np.ndarray:
    """Columns that latency depends on; which layers are kept does not matter, only how many and how wide.

    A step's column says how far the layers climb it, summed over layers: a latency that is any piecewise linear
    function of a layer's size, with knots at the choices, is a weighted sum of these columns. A name of a block, such
    as an attention pattern, counts by its place in the order of cost, times the block's width. For each name of a
    layer, such as a dtype, the columns are the layers that have it and their total widths.

    Returns:
        (subnets, len(feature_names(space))) floats; sizes as fractions of the largest choice. The array is contiguous
        by rows, as a table read from a file is: sums, and so fits, are then the same to the last bit.
    """
    batch = SubnetBatch.from_subnets(subnets, space.parent.num_hidden_layers)
    columns = [column for stack in space.stacks for column in _stack_columns(space, batch, stack)]
    for name, ranks in _subnet_ranks(space).items():
        percent, full = batch.subnet_values[name], DIMENSIONS[name].neutral
        columns += [np.where(percent < full, percent / full, 0.0), *(np.equal(percent, rank) for rank in ranks)]
    for name in _subnet_categories(space):
        level = batch.category_index(name, space.choices[name])
        columns += [level == number for number, _ in enumerate(space.choices[name][:-1], 1)]
    table, work_columns = np.stack(columns, dtype=float), work_features(space, batch).T
    if len(space.choices[SIZE]) == 1:
        return np.ascontiguousarray(np.concatenate([table, work_columns]).T)
    size = batch.subnet_values[SIZE] / max(space.choices[SIZE])
    return np.ascontiguousarray(np.concatenate([table, table * size, work_columns]).T)


def _stack_columns(space: SearchSpace, batch: SubnetBatch, stack: range) -> list[np.ndarray]:
    """The columns of one stack: depth, sums, steps, and names of layers."""
    kept, sums, steps = batch.kept[:, stack].T, list[np.ndarray](), list[np.ndarray]()
    values = {name: np.ascontiguousarray(column[:, stack].T) for name, column in batch.layer_values.items()}
    for name in _block_fields(space):
        choices = space.choices[name]
        if DIMENSIONS[name].is_categorical:
            width = values[WIDTH_OF[name]] / max(space.choices[WIDTH_OF[name]])
            level = batch.category_index(name, choices)[:, stack].T
            sums.append((width * level).sum(axis=0))
            steps += [(width * (level > k)).sum(axis=0) for k in range(1, len(choices))]
            continue
        sums.append(values[name].sum(axis=0) / max(choices))
        ends = [-np.inf, *choices[1:-1], np.inf]
        heights = [
            np.clip(values[name], *between) - low for low, between in zip(choices, pairwise(ends), strict=False)
        ]
        for rank in _block_ranks(space, name):
            mask = kept if rank is None else values[RANK_OF[name]] == rank
            steps += [(height * mask).sum(axis=0) / max(choices) for height in heights[: len(choices) - 1]]
    for name in _layer_categories(space):
        index = batch.category_index(name, space.choices[name])
        for number, _ in enumerate(space.choices[name], 1):
            mask = (index == number)[:, stack].T
            steps.append(mask.sum(axis=0))
            steps += [(values[width] * mask).sum(axis=0) / max(space.choices[width]) for width in WIDTHS]
    return [kept.sum(axis=0), *sums, *steps]


def _block_fields(space: SearchSpace) -> list[str]:
    """Searched dimensions of blocks."""
    return [name for name in space.layer_fields if name in WIDTH_OF]


def _layer_categories(space: SearchSpace) -> list[str]:
    """Searched names of whole layers."""
    return [name for name in space.layer_fields if name in NO_BLOCK]


def _subnet_ranks(space: SearchSpace) -> dict[str, list[int]]:
    """Searched ranks of the subnetwork -> their choices below full rank, in percent."""
    names = [name for name in PER_SUBNET if isinstance(DIMENSIONS[name], Rank) and name in space.parameters]
    return {name: [rank for rank in space.parameters[name] if rank < DIMENSIONS[name].neutral] for name in names}


def _subnet_categories(space: SearchSpace) -> list[str]:
    """Searched names of the subnetwork."""
    return [name for name in PER_SUBNET if DIMENSIONS[name].is_categorical and name in space.parameters]


def _block_ranks(space: SearchSpace, name: str) -> Sequence[int | None]:
    """The ranks under which a size costs differently; None where that does not depend on a rank."""
    return space.choices[RANK_OF[name]] if RANK_OF.get(name) in space.layer_fields else (None,)


def depth_only(features: np.ndarray) -> np.ndarray:
    """The column with the number of layers, of (n, d) features: (n, 1)."""
    return features[:, :1]

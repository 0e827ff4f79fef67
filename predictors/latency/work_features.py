"""Work features: amounts of work in a subnetwork; latency is a weighted sum of them with weights of at least zero.

Each block takes time per call, per multiply-accumulate and per element that it moves, which differs between dtypes.
Attention also takes time per head, which differs between patterns, and the modules outside the layers take time per
channel.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from search_spaces import SearchSpace, SubnetBatch
from search_spaces.dimension import FULL_RANK
from search_spaces.dimensions import DIMENSIONS, PER_SUBNET
from search_spaces.dimensions.attention import FULL
from search_spaces.dimensions.bits import DTYPES, FULL_PRECISION
from search_spaces.dimensions.ranks import RANK_FIELDS

WORK_PREFIX = "work:"
"""Prefix of the names of work features."""

RANK_OF = {width: rank for rank, width in RANK_FIELDS.items()}
PER_BLOCK = ("blocks", "thin blocks", "products", "widths", "thin widths", "moved")
"""Columns per block; ``thin`` means low-rank. Predictors store these names, so they cannot change."""
PER_CHOICE = ("once", "layers", "widths")
"""Columns per name of the subnetwork."""


def work_feature_names(space: SearchSpace) -> tuple[str, ...]:
    """Names of the columns of `work_features`."""
    names = ["hidden"]
    for stack in range(len(space.stacks)):
        names += [f"{stack} layers", f"{stack} hidden"]
        for bits in space.choices.get("bits", (FULL_PRECISION,)):
            names += [f"{stack} {bits} {field} {what}" for field in RANK_OF for what in PER_BLOCK]
            names += [f"{stack} {bits} key and value products"]
        names += [
            f"{stack} {p} {what}" for p in space.choices.get("attention", (FULL,)) for what in ("blocks", "heads")
        ]
    names += [f"thin table {what}" for what in ("blocks", "products") if "embedding_rank" in space.parameters]
    categories = [(name, choice) for name in _categories(space) for choice in space.parameters[name][:-1]]
    names += [f"{name} {choice} {what}" for name, choice in categories for what in PER_CHOICE]
    return tuple(f"{WORK_PREFIX} {name}" for name in names)


def work_features(space: SearchSpace, batch: SubnetBatch) -> np.ndarray:
    """Work features of a batch: (n, len(work_feature_names(space))) floats; widths are fractions of the parent's."""
    columns = [batch.subnet_values["hidden_size"] / space.parent.hidden_size]
    columns += [column for stack in space.stacks for column in _stack_columns(space, batch, stack)]
    if "embedding_rank" in space.parameters:
        percent, hidden = batch.subnet_values["embedding_rank"], batch.subnet_values["hidden_size"]
        low_rank = percent < FULL_RANK
        columns += [low_rank.astype(float), low_rank * percent / FULL_RANK * hidden]
    widths = _widths(space, batch)
    for name in _categories(space):  # a table takes time once; with fewer pieces every layer has more tokens
        level = batch.category_index(name, space.parameters[name])
        for number, _ in enumerate(space.parameters[name][:-1], 1):
            columns += [(level == number) * factor for factor in (1.0, batch.kept.sum(axis=1), widths)]
    return np.stack(columns).T


def _categories(space: SearchSpace) -> list[str]:
    """Searched names of the subnetwork."""
    return [name for name in PER_SUBNET if DIMENSIONS[name].is_categorical and name in space.parameters]


def _widths(space: SearchSpace, batch: SubnetBatch) -> np.ndarray:
    """Sum over layers and blocks of the width relative to the parent's: (n,)."""
    shares = (batch.layer_values[field] / max(getattr(space.parent, field)) for field in RANK_OF)
    return np.sum([share.sum(axis=1) for share in shares], axis=0)


def _stack_columns(space: SearchSpace, batch: SubnetBatch, stack: range) -> Iterator[np.ndarray]:
    parent, kept = space.parent, batch.kept[:, stack].T
    widths = {field: np.ascontiguousarray(values[:, stack].T) for field, values in batch.layer_values.items()}
    hidden = batch.subnet_values["hidden_size"] / parent.hidden_size
    yield kept.sum(axis=0, dtype=float)
    yield (kept * hidden).sum(axis=0)
    for bits in space.choices.get("bits", (FULL_PRECISION,)):
        stored = kept & (widths["bits"] == DTYPES.index(bits))
        for field, rank_field in RANK_OF.items():
            largest = max(getattr(parent, field))
            share = parent.hidden_size if field == "num_attention_heads" else largest
            width = widths[field] / largest
            rank = np.where(widths[rank_field] < FULL_RANK, widths[rank_field] / FULL_RANK, 1.0)
            is_active, low_rank = stored & (width > 0), stored & (width > 0) & (rank < 1)
            outputs, inputs = width * share, hidden * parent.hidden_size
            factor = rank * outputs * inputs / (outputs + inputs) / parent.hidden_size
            columns = (
                is_active,
                low_rank,
                is_active * width * hidden * rank,
                is_active * width,
                low_rank * factor,
                is_active * (width + hidden),
            )
            yield from (column.sum(axis=0, dtype=float) for column in columns)
        kv_heads = widths["num_key_value_heads"] / max(parent.num_key_value_heads)
        rank = np.minimum(widths["attention_rank"] / FULL_RANK, 1.0)
        yield (stored * kv_heads * hidden * rank).sum(axis=0)
    heads = widths["num_attention_heads"] / max(parent.num_attention_heads)
    patterns = space.choices.get("attention", (FULL,))
    level = batch.category_index("attention", patterns)[:, stack].T
    for number, _ in enumerate(patterns, 1):
        is_active = kept & (heads > 0) & (level == number)
        yield is_active.sum(axis=0, dtype=float)
        yield (is_active * heads).sum(axis=0)

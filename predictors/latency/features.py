"""Features of subnetworks (from models.py)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from predictors.latency.work import RANK_OF, work, work_names
from search_spaces import SearchSpace, SubnetBatch, SubnetConfig
from search_spaces.dimensions.ranks import FULL_RANK
from search_spaces.space import DEPTHS
from search_spaces.subnet import NUMERIC

BLOCK_WIDTHS = tuple(RANK_OF)
HIDDEN = "hidden_size*"
"""Begins the name of a column that is multiplied by the hidden size."""


def feature_names(space: SearchSpace) -> tuple[str, ...]:
    """Columns of `features`.

    For each stack its depth, the sum of each width over its layers, then each step between two choices of a width, one
    for each rank that the block may have; then the rank of the embeddings and each choice of it, where that is open;
    and all of them again times the hidden size, where that is open. Last, the columns of `work`.
    """
    names: list[str] = []
    for stack, depth in enumerate(DEPTHS[: len(space.stacks)]):
        fields = [f"{'decoder ' * stack}{field}" for field in space.fields]
        steps = [
            f"{name}{f'@{rank}' * bool(rank)}:{low}-{high}"
            for name, f in zip(fields, space.fields, strict=True)
            if f != "bits"
            for rank in _ranks(space, f)
            for low, high in pairwise(space.choices[f])
        ]
        sums = [name for name in fields if not name.endswith("bits")]
        kinds = [f"{'decoder ' * stack}bits*{of}:{kind}" for kind in _kinds(space) for of in ("layers", *BLOCK_WIDTHS)]
        names += [depth, *sums, *steps, *kinds]
    thin = _thin_tables(space)
    names += ["embedding_rank"] * bool(thin) + [f"embedding_rank:{rank}" for rank in thin]
    if len(space.choices["hidden_size"]) > 1:
        names += [f"{HIDDEN}{name}" for name in names]
    return (*names, *work_names(space))


def features(space: SearchSpace, subnets: Sequence[SubnetConfig]) -> np.ndarray:
    """What latency depends on; which layers are kept does not matter, only how many and how wide.

    A step's column says how far the layers climb it, summed over layers: a latency that is any piecewise linear
    function of a layer's width, with knots at the choices, is a weighted sum of these columns. Attention patterns are
    counted by their place in the order of cost, times the heads that attend by them; of each kind of bits, the layers
    in it are, and what all of them together have of each width.

    Returns:
        (subnets, len(feature_names(space))) floats; widths as fractions of the largest choice. Rows lie together, as
        in a table read back from a file: sums, and so fits, are then the same to the last bit.
    """
    batch = SubnetBatch.from_subnets(subnets, space.parent.num_hidden_layers)
    columns: list[np.ndarray] = []
    for stack in space.stacks:
        kept, sums, climbs = batch.kept[:, stack].T, list[np.ndarray](), list[np.ndarray]()
        widths = {field: np.ascontiguousarray(batch.layer_values[field][:, stack].T) for field in NUMERIC}
        for field in (field for field in space.fields if field != "bits"):
            steps = list(pairwise(space.choices[field]))
            if field == "attention":
                heads = widths["num_attention_heads"] / max(space.choices["num_attention_heads"])
                place = batch.category_index(field, space.choices[field])[:, stack].T
                sums.append((heads * place).sum(axis=0))
                climbs += [(heads * (place > k)).sum(axis=0) for k in range(1, len(steps) + 1)]
                continue
            largest, values = max(space.choices[field]), widths[field]
            sums.append(values.sum(axis=0) / largest)
            ends = [-np.inf, *space.choices[field][1:-1], np.inf]
            climbed = [
                np.clip(values, *between) - low for (low, _), between in zip(steps, pairwise(ends), strict=False)
            ]
            for rank in _ranks(space, field):
                here = kept if rank is None else widths[RANK_OF[field]] == rank
                climbs += [(climb * here).sum(axis=0) / largest for climb in climbed]
        for number, _ in enumerate(_kinds(space), 1):
            here = (batch.category_index("bits", _kinds(space)) == number)[:, stack].T
            climbs.append(here.sum(axis=0))
            for width in BLOCK_WIDTHS:
                climbs.append((widths[width] * here).sum(axis=0) / max(space.choices[width]))
        columns += [kept.sum(axis=0), *sums, *climbs]
    percent, thin = batch.embedding_rank, _thin_tables(space)
    columns += [np.where(percent < FULL_RANK, percent / FULL_RANK, 0.0)] * bool(thin)
    columns += [np.equal(percent, choice) for choice in thin]
    table, of_work = np.stack(columns, dtype=float), work(space, batch).T
    if len(space.choices["hidden_size"]) == 1:
        return np.ascontiguousarray(np.concatenate([table, of_work]).T)
    hidden = batch.hidden_size / max(space.choices["hidden_size"])
    return np.ascontiguousarray(np.concatenate([table, table * hidden, of_work]).T)


def _kinds(space: SearchSpace) -> Sequence[str]:
    """The kinds of bits that layers may be in, where that is open."""
    return space.choices["bits"] if "bits" in space.fields else ()


def _thin_tables(space: SearchSpace) -> Sequence[int]:
    """The ranks with which embeddings take a product more, in percent, where that is open."""
    return [rank for rank in space.parameters.get("embedding_rank", ()) if rank < FULL_RANK]


def _ranks(space: SearchSpace, field: str) -> Sequence[int | None]:
    """The ranks under which a width costs differently; None where that does not depend on a rank."""
    return space.choices[RANK_OF[field]] if RANK_OF.get(field) in space.fields else (None,)


def depth_only(features: np.ndarray) -> np.ndarray:
    """The column of layers of (n, d) features of a space."""
    return features[:, :1]

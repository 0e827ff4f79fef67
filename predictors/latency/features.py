"""Features of subnetworks that latency models are fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from predictors.latency.work_features import RANK_OF, work_feature_names, work_features
from search_spaces import SearchSpace, SubnetBatch, SubnetConfig
from search_spaces.dimension import FULL_RANK
from search_spaces.dimensions import DEPTHS
from search_spaces.subnet import NUMERIC

BLOCK_WIDTHS = tuple(RANK_OF)
HIDDEN_PREFIX = "hidden_size*"
"""Prefix of columns that are multiplied by the hidden size."""


def feature_names(space: SearchSpace) -> tuple[str, ...]:
    """Names of the columns of `features`.

    For each stack there are its depth, the sum of each width over its layers, and each step between two consecutive
    choices of a width, once for each rank that the block can have. If the rank of the embeddings varies, it and each
    of its choices follow. If the hidden size varies, all columns are repeated, multiplied by it. The columns of
    `work_features` come last.
    """
    names: list[str] = []
    for stack, depth in enumerate(DEPTHS[: len(space.stacks)]):
        fields = [f"{'decoder ' * stack}{field}" for field in space.layer_fields]
        steps = [
            f"{name}{f'@{rank}' * bool(rank)}:{low}-{high}"
            for name, f in zip(fields, space.layer_fields, strict=True)
            if f != "bits"
            for rank in _block_ranks(space, f)
            for low, high in pairwise(space.choices[f])
        ]
        sums = [name for name in fields if not name.endswith("bits")]
        bits_names = [
            f"{'decoder ' * stack}bits*{of}:{bits}"
            for bits in _bits_choices(space)
            for of in ("layers", *BLOCK_WIDTHS)
        ]
        names += [depth, *sums, *steps, *bits_names]
    embedding_ranks = _embedding_ranks(space)
    names += ["embedding_rank"] * bool(embedding_ranks) + [f"embedding_rank:{rank}" for rank in embedding_ranks]
    if len(space.choices["hidden_size"]) > 1:
        names += [f"{HIDDEN_PREFIX}{name}" for name in names]
    return (*names, *work_feature_names(space))


def features(space: SearchSpace, subnets: Sequence[SubnetConfig]) -> np.ndarray:
    """Features of subnetworks. They depend on the number and the widths of the kept layers, not on which are kept.

    The column of a step is the part of the step that each layer's width covers, summed over layers. Any latency that
    is a piecewise linear function of a layer's width, with knots at the choices, is a weighted sum of these columns.
    An attention pattern is represented by its index in the order of cost, times the number of heads. Each choice of
    bits has the number of its layers and the sum of each of their widths.

    Returns:
        (subnets, len(feature_names(space))) floats; widths are fractions of the largest choice. The array is
        C-contiguous, like a table read from a file, so that sums and fits are the same to the last bit.
    """
    batch = SubnetBatch.from_subnets(subnets, space.parent.num_hidden_layers)
    columns: list[np.ndarray] = []
    for stack in space.stacks:
        kept, sums, step_columns = batch.kept[:, stack].T, list[np.ndarray](), list[np.ndarray]()
        widths = {field: np.ascontiguousarray(batch.layer_values[field][:, stack].T) for field in NUMERIC}
        for field in (field for field in space.layer_fields if field != "bits"):
            steps = list(pairwise(space.choices[field]))
            if field == "attention":
                heads = widths["num_attention_heads"] / max(space.choices["num_attention_heads"])
                level = batch.category_index(field, space.choices[field])[:, stack].T
                sums.append((heads * level).sum(axis=0))
                step_columns += [(heads * (level > k)).sum(axis=0) for k in range(1, len(steps) + 1)]
                continue
            largest, values = max(space.choices[field]), widths[field]
            sums.append(values.sum(axis=0) / largest)
            ends = [-np.inf, *space.choices[field][1:-1], np.inf]
            heights = [
                np.clip(values, *between) - low for (low, _), between in zip(steps, pairwise(ends), strict=False)
            ]
            for rank in _block_ranks(space, field):
                mask = kept if rank is None else widths[RANK_OF[field]] == rank
                step_columns += [(height * mask).sum(axis=0) / largest for height in heights]
        for number, _ in enumerate(_bits_choices(space), 1):
            mask = (batch.category_index("bits", _bits_choices(space)) == number)[:, stack].T
            step_columns.append(mask.sum(axis=0))
            for width in BLOCK_WIDTHS:
                step_columns.append((widths[width] * mask).sum(axis=0) / max(space.choices[width]))
        columns += [kept.sum(axis=0), *sums, *step_columns]
    percent, embedding_ranks = batch.subnet_values["embedding_rank"], _embedding_ranks(space)
    columns += [np.where(percent < FULL_RANK, percent / FULL_RANK, 0.0)] * bool(embedding_ranks)
    columns += [np.equal(percent, choice) for choice in embedding_ranks]
    table, work_columns = np.stack(columns, dtype=float), work_features(space, batch).T
    if len(space.choices["hidden_size"]) == 1:
        return np.ascontiguousarray(np.concatenate([table, work_columns]).T)
    hidden = batch.subnet_values["hidden_size"] / max(space.choices["hidden_size"])
    return np.ascontiguousarray(np.concatenate([table, table * hidden, work_columns]).T)


def _bits_choices(space: SearchSpace) -> Sequence[str]:
    """The choices of bits if they vary, else none."""
    return space.choices["bits"] if "bits" in space.layer_fields else ()


def _embedding_ranks(space: SearchSpace) -> Sequence[int]:
    """The low ranks of the embeddings in percent, with which they need one more product; none if they do not vary."""
    return [rank for rank in space.parameters.get("embedding_rank", ()) if rank < FULL_RANK]


def _block_ranks(space: SearchSpace, field: str) -> Sequence[int | None]:
    """The ranks of the block that a width belongs to; (None,) if they do not vary."""
    return space.choices[RANK_OF[field]] if RANK_OF.get(field) in space.layer_fields else (None,)


def depth_only(features: np.ndarray) -> np.ndarray:
    """The column with the number of layers, of (n, d) features: (n, 1)."""
    return features[:, :1]

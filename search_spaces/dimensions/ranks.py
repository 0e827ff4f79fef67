"""Ranks of the linear layers of a block: each becomes two factors."""

from __future__ import annotations

from search_spaces.dimension import FULL_RANK, Rank

RANK_STEP = 8
"""Ranks are multiples of this step: matrix products with other sizes take up to 50 % longer."""


def factor_rank(outputs: int, inputs: int, percent: int) -> int | None:
    """Rank of two factors in place of one matrix, None if it stays one matrix.

    Break-even is the rank outputs * inputs / (outputs + inputs), at which two factors have as many weights as the
    matrix. A rank above `RANK_STEP` is rounded down to a multiple of it.

    Args:
        outputs: Rows of the matrix.
        inputs: Columns of the matrix.
        percent: Rank in percent of break-even; `FULL_RANK` or 0 (a skipped block) keeps one matrix.
    """
    if percent in (0, FULL_RANK):
        return None
    rank = percent * outputs * inputs // (100 * (outputs + inputs))
    return max(1, rank - rank % RANK_STEP if rank > RANK_STEP else rank)


ATTENTION_RANK = Rank(
    "attention_rank",
    label="attention rank %",
    meaning="Rank of the linear layers of attention: `full`, or a fraction of the break-even rank.",
    scope="attention",
    factorized_axes=("heads", "cross_heads", "kv_heads", "qkv_heads"),
)
MLP_RANK = Rank(
    "mlp_rank",
    label="mlp rank %",
    meaning="Rank of the linear layers of the feed-forward block: `full`, or a fraction of the break-even rank.",
    scope="mlp",
    factorized_axes=("ffn",),
)

RANK_FIELDS = {"attention_rank": "num_attention_heads", "mlp_rank": "intermediate_size"}
"""Rank of a block's linear layers -> width of the block."""

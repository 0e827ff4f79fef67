"""Ranks of low-rank linear layers and embeddings, in percent of the break-even rank."""

from __future__ import annotations

RANK_STEP = 8
"""Ranks are multiples of this step: matrix products with other sizes take up to 50 % longer."""

FULL_RANK = 100
"""The rank of a linear layer that stays one full matrix."""


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

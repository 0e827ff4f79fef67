"""`FULL_RANK`, `RANK_STEP`, `factor_rank`."""

from __future__ import annotations

RANK_STEP = 8
"""Ranks are multiples of it: matrix products of other widths take up to half as long again."""
FULL_RANK = 100
"""The rank of linear layers that stay one matrix each."""


def factor_rank(outputs: int, inputs: int, percent: int) -> int | None:
    """So many percent of the rank at which two factors hold as many numbers as one matrix; None for `FULL_RANK`.

    It is rounded down to a multiple of `RANK_STEP`, unless it is smaller.
    """
    if percent in (0, FULL_RANK):
        return None
    rank = percent * outputs * inputs // (100 * (outputs + inputs))
    return max(1, rank - rank % RANK_STEP if rank > RANK_STEP else rank)

"""Pruning: choices of a recipe that cannot pay, left out of the space before anything is searched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.errors import InputError
from search_spaces.subnet import DENSE, RANKS

FULL = "full"
"""What a recipe calls a linear layer that stays one matrix."""


def pruned(choices: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The choices of a recipe as a `SearchSpace` takes them, and one line for each dimension that lost some.

    Ranks are fractions of the break-even rank in a recipe, percent of it in a space.

    Raises:
        InputError: If a rank is under a percent of break-even.
    """
    found, reasons = dict(choices), list[str]()
    for rank in RANKS:
        values = choices.get(rank)
        if values is None:
            continue
        if wrong := [value for value in values if value != FULL and value < 0.01]:
            raise InputError(f"`space.{rank}` must be `{FULL}` or at least 0.01 of break-even, but got {wrong}.")
        paying = [value for value in values if value == FULL or value < 1]
        left_out = [value for value in values if value not in paying]
        if left_out:
            reasons.append(
                f"{rank} {', '.join(f'{value:g}' for value in left_out)} left out: from break-even on, two factors "
                "cost as much as the one matrix"
            )
        found[rank] = [DENSE if value == FULL else int(round(100 * value, 6)) for value in paying or [FULL]]
    return found, reasons

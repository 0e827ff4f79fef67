"""Useful choices: drops those choices of a recipe that can improve no objective, before the search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.dimension import Facts
from search_spaces.dimensions import DIMENSIONS


def useful_choices(choices: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], list[str]]:
    """The choices of a recipe as `SearchSpace` takes them, and one line for each reason why some are dropped.

    Args:
        choices: Scope and lists of choices, as in the recipe; None where a dimension is fixed.
        facts: What the workload can run, and what the recipe measures.

    Raises:
        InputError: If a choice is no possible value.
    """
    useful, reasons = dict(choices), list[str]()
    for name, dimension in DIMENSIONS.items():
        if choices.get(name) is not None:
            useful[name], dropped = dimension.useful(choices[name], facts)
            reasons += [f"{name} {reason}" for reason in dropped]
    return useful, reasons

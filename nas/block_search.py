"""Block search: every block scored by replacing it alone, then an integer program over the layers (Puzzle).

Bercovich et al. 2024 (arXiv 2411.19146). A search evaluates `replacements(space)` first, then what
`block_solutions(...)` makes of their scores, both like any other subnetworks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nas.figures import Bound
from search_spaces import SearchSpace, SubnetConfig

Cost = Callable[[str, Sequence[SubnetConfig]], np.ndarray]
"""Name of a cost and subnetworks -> its values (n,), known without evaluating them, as `Evaluator.cost`."""


def replacements(space: SearchSpace) -> list[SubnetConfig]:
    """The largest subnetwork, then each that differs from it in one block alone.

    Raises:
        InputError: If the layers of the space cannot be chosen one by one (scope ``uniform``).
    """
    raise NotImplementedError


def block_solutions(
    space: SearchSpace,
    losses: Mapping[str, float],
    cost: Cost,
    *,
    objectives: Sequence[str],
    bounds: Mapping[str, Bound],
    limit: int,
) -> list[SubnetConfig]:
    """Subnetworks with the smallest sum of block losses under rising budgets, cheapest first.

    Args:
        space: A per-layer space.
        losses: Key of each evaluated subnetwork -> its quality, signed so that less is better; those of
            `replacements(space)` are read, and what is missing or failed is never chosen.
        cost: Every cost of any subnetwork.
        objectives: Names of the costs to trade the quality against.
        bounds: Constraints on costs; every solution meets them.
        limit: How many solutions at most.

    Raises:
        InputError: If nothing meets the bounds.
    """
    raise NotImplementedError

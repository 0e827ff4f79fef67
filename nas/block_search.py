"""Block search: every block scored by replacing it alone, then an integer program over the layers (Puzzle).

Bercovich et al. 2024 (arXiv 2411.19146). A search evaluates `replacements(space)` first, then what
`block_solutions(...)` makes of their scores, both like any other subnetworks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from nas.figures import Bound, excess, reached
from search_spaces import InputError, SearchSpace, SubnetConfig

Cost = Callable[[str, Sequence[SubnetConfig]], np.ndarray]
"""Name of a cost and subnetworks -> its values (n,), known without evaluating them, as `Evaluator.cost`."""

TIGHTENING = 0.98
"""The sum of block costs is a model of the true cost; a solution that breaks a bound is sought again below this share
of what is left."""
ATTEMPTS = 12


@dataclass(frozen=True)
class Block:
    """One choice of one parameter of one layer, or the layer's absence, in place of the largest subnetwork's own."""

    layer: str
    name: str
    value: Any
    subnet: SubnetConfig

    @property
    def drops(self) -> bool:
        """Whether the layer is absent."""
        return self.name == f"layers.{self.layer}"


def blocks(space: SearchSpace) -> list[Block]:
    """Every block of a per-layer space that differs from the largest subnetwork's.

    Raises:
        InputError: If the layers of the space cannot be chosen one by one.
    """
    if space.scope != "per-layer":
        raise InputError(
            f"`search.sampler: BlockSearch` needs `space.scope: per-layer`, but got `{space.scope}`: "
            "use another sampler or let each layer have widths of its own."
        )
    whole = space.to_params(space.largest)
    found = []
    for name, distribution in space.distributions().items():
        layer = name.rpartition(".")[2]
        if layer.isdigit():
            for value in _values(distribution):
                subnet = space.from_params({**whole, name: value})
                if value != whole[name] and subnet != space.largest:
                    found.append(Block(layer, name, value, subnet))
    return found


def replacements(space: SearchSpace) -> list[SubnetConfig]:
    """The largest subnetwork, then each that differs from it in one block alone.

    Raises:
        InputError: If the layers of the space cannot be chosen one by one.
    """
    return list(dict.fromkeys([space.largest, *(block.subnet for block in blocks(space))]))


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

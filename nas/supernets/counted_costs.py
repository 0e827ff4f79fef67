"""The exact costs of subnetworks under every workload of a recipe, by the names that its objectives use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nas.recipe.objectives import cost_name

if TYPE_CHECKING:
    import numpy as np

    from nas.recipe.schema import Recipe
    from predictors import AnalyticCosts
    from search_spaces import SubnetConfig


def count_costs(
    counts: AnalyticCosts, recipe: Recipe, subnets: Sequence[SubnetConfig], names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """Exact costs of many subnetworks: name, such as ``macs@phone`` -> (n,).

    Args:
        counts: Counts them under one workload.
        recipe: Its workloads.
        subnets: The subnetworks.
        names: Which of them; others are ignored. None: all.
    """
    wanted, values = None if names is None else set(names), dict[str, "np.ndarray"]()
    for workload_name, workload in recipe.named_workloads.items():
        new = {cost: cost_name(cost, workload_name) for cost in counts.cost_names}
        new = {cost: name for cost, name in new.items() if name not in values and (wanted is None or name in wanted)}
        counted = counts.count(list(new), subnets, workload) if new else {}
        values |= {new[cost]: column for cost, column in counted.items()}
    return values

"""Block search (Puzzle): scores of single blocks, then an integer program that chooses a block for each layer.

Bercovich et al. 2024 (arXiv 2411.19146). A search evaluates `replacements(space)` first, then the subnetworks that
`block_solutions(...)` finds from their scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nas.recipe.objectives import Bound, against_bounds, total_violation
from nas.samplers.encoding import choices_of
from search_spaces import InputError, SearchSpace, SubnetConfig
from search_spaces.dimensions import DIMENSIONS

Cost = Callable[[str, Sequence[SubnetConfig]], np.ndarray]
"""Name of a cost and subnetworks -> its values (n,), known without running them, as `Evaluator.cost`."""

MAX_TIGHTENINGS = 8
"""The sum of block costs only approximates the true cost: so often a bound is tightened by what a solution misses."""


@dataclass(frozen=True)
class Block:
    """The largest subnetwork with one parameter of one layer changed, or one layer dropped.

    Attributes:
        layer: Number of the layer, or the dimension of the subnetwork that is changed.
        name: The parameter: ``layers.3`` for the presence of a layer, ``intermediate_size.3`` for a width of it.
        value: Its value; False: the layer is dropped.
        subnet: The changed subnetwork.
    """

    layer: str
    name: str
    value: Any
    subnet: SubnetConfig

    @property
    def drops_layer(self) -> bool:
        """Whether the layer is dropped."""
        return self.name.startswith("layers.")


def blocks(space: SearchSpace) -> list[Block]:
    """Every block of the layers of the largest subnetwork, with the unchanged ones.

    Raises:
        InputError: If the layers of the space cannot be chosen one by one.
    """
    if space.scope != "per-layer":
        raise InputError(
            f"`search.sampler: BlockSearch` needs `space.scope: per-layer`, but got `{space.scope}`; "
            "use that scope or another sampler."
        )
    parameters, largest = space.parameters, space.largest
    largest_values, layers = parameters.from_subnet(largest), {*map(str, largest.layers), *_replaceable(space)}
    result = []
    for name, distribution in parameters.distributions().items():
        layer = name.rpartition(".")[2]
        for value in choices_of(distribution) if layer in layers else ():
            subnet = parameters.to_subnet({**largest_values, name: value})
            if value is not True and (value == largest_values[name] or subnet != largest):
                result.append(Block(layer, name, value, subnet))
    return result


def _replaceable(space: SearchSpace) -> list[str]:
    """Dimensions of the subnetwork that change a module, and the width of no other one."""
    return [name for name in space.subnet_fields if not DIMENSIONS[name].axes]


def replacements(space: SearchSpace) -> list[SubnetConfig]:
    """The largest subnetwork, then each that differs from it in one block.

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
    """Subnetworks with the smallest sum of block losses under growing budgets, cheapest first.

    A budget is a limit of one objective, or of the mean of all, between its values at the smallest and the largest
    subnetwork.

    Args:
        space: A per-layer space.
        losses: Key of each evaluated subnetwork -> its metric, signed to be minimised; those of `replacements(space)`
            are read, and a block that is missing or has failed is never chosen.
        cost: Computes every cost of any subnetwork.
        objectives: Names of the costs among the objectives.
        bounds: Constraints on costs; every solution meets them.
        limit: How many solutions at most.

    Raises:
        InputError: If nothing meets the bounds.
    """
    program = _IntegerProgram(space, losses, cost)
    solutions: dict[str, SubnetConfig] = {}
    for budget in _budget_grid(program, objectives, limit):
        subnet = _solve_within(program, budget, bounds)
        if subnet is not None:
            solutions.setdefault(subnet.key, subnet)
    costs = {name: float(cost(name, [space.smallest])[0]) for name in bounds}
    if not solutions and total_violation(costs, bounds) > 0:
        raise InputError(
            "no combination of the scored blocks meets the constraints; the smallest subnetwork reaches "
            f"{against_bounds(costs, bounds)}. Loosen the constraint, or widen `space` in a new run."
        )
    solutions = solutions or {space.smallest.key: space.smallest}
    first = objectives[0] if objectives else next(iter(bounds), None)
    if first is None:
        return list(solutions.values())
    return sorted(solutions.values(), key=lambda subnet: float(cost(first, [subnet])[0]))


Limit = tuple[np.ndarray, float]
"""Coefficients of the variables of the program, and the largest value of their sum."""


def _budget_grid(program: _IntegerProgram, objectives: Sequence[str], limit: int) -> Iterator[Limit]:
    """Limits of each objective and of the mean of all, from tight to loose."""
    rows = []
    for name in objectives:
        row, least, most = program.costs(name), *program.cost_range(name)
        rows.append((row / (most - least), (program.costs_of_largest(name) - least) / (most - least)))
    if len(rows) > 1:
        rows.append((np.mean([row for row, _ in rows], axis=0), float(np.mean([start for _, start in rows]))))
    each = -(-limit // max(len(rows), 1))
    budgets = [(row, share - start) for share in np.linspace(0.0, 1.0, each) for row, start in rows]
    yield from budgets[:limit] or [(np.zeros(program.size), 0.0)]


def _solve_within(program: _IntegerProgram, budget: Limit, bounds: Mapping[str, Bound]) -> SubnetConfig | None:
    """The best subnetwork within a budget whose true costs meet the bounds; None if none is found."""
    slack = dict.fromkeys(bounds, 0.0)
    for attempt in range(1, MAX_TIGHTENINGS + 1):
        limits = [program.bounded(name, bound, slack[name]) for name, bound in bounds.items()]
        subnet = program.solve([budget, *limits])
        if subnet is None:
            return None
        costs = {name: float(program.cost(name, [subnet])[0]) for name in bounds}
        if total_violation(costs, bounds) <= 0:
            return subnet
        for name, bound in bounds.items():
            missed = bound.violation(costs[name])
            slack[name] += attempt * missed + 1e-6 * abs(bound.value) if missed > 0 else 0.0
    return None


class _IntegerProgram:
    """An integer program with a binary variable for each block; a layer has one choice a parameter or is dropped."""

    def __init__(self, space: SearchSpace, losses: Mapping[str, float], cost: Cost) -> None:
        self.space, self.cost = space, cost
        scored = [block for block in blocks(space) if np.isfinite(losses.get(block.subnet.key, np.nan))]
        if space.largest.key not in losses or not scored:
            raise InputError("block search needs the scores of `replacements(space)`; evaluate them first.")
        self.blocks = scored
        self.size = len(scored)
        self.loss = np.array([losses[block.subnet.key] for block in scored]) - losses[space.largest.key]

    def costs(self, name: str) -> np.ndarray:
        """What each block adds to a cost of the largest subnetwork, shape (n,)."""
        return self.cost(name, [block.subnet for block in self.blocks]) - self.costs_of_largest(name)

    def costs_of_largest(self, name: str) -> float:
        """A cost of the largest subnetwork."""
        return float(self.cost(name, [self.space.largest])[0])

    def cost_range(self, name: str) -> tuple[float, float]:
        """A cost of the smallest and of the largest subnetwork."""
        least, most = self.cost(name, [self.space.smallest, self.space.largest])
        return float(least), float(most) if most > least else float(least) + 1.0

    def bounded(self, name: str, bound: Bound, slack: float) -> Limit:
        """A bound on a cost as a limit of the sum over blocks, tightened by a slack."""
        sign = 1.0 if bound.op[0] == "<" else -1.0
        return sign * self.costs(name), sign * (bound.value - self.costs_of_largest(name)) - slack

    @cached_property
    def _choices(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (k, n) and their sums (k,): one choice of each parameter of a layer, or the layer is dropped."""
        drops = {block.layer: i for i, block in enumerate(self.blocks) if block.drops_layer}
        names = list(dict.fromkeys(block.name for block in self.blocks if not block.drops_layer))
        rows = np.array([[float(block.name == name) for block in self.blocks] for name in names])
        for row, name in zip(rows, names, strict=True):
            layer = name.rpartition(".")[2]
            if layer in drops:
                row[drops[layer]] = 1.0
        return rows.reshape(len(names), self.size), np.ones(len(names))

    @cached_property
    def _depths(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (s, n) that count the dropped layers of each stack, and how many may be dropped (s,)."""
        layers = self.space.largest.layers
        rows = [
            [float(block.drops_layer and int(block.layer) in stack) for block in self.blocks]
            for stack in self.space.stacks
        ]
        most = [
            sum(layer in stack for layer in layers) - min(self.space.choices[name])
            for stack, name in zip(self.space.stacks, self.space.depth_names, strict=True)
        ]
        return np.array(rows), np.array(most, dtype=float)

    def solve(self, limits: Sequence[Limit]) -> SubnetConfig | None:
        """The subnetwork with the smallest loss within limits; None if there is none."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        choices, ones = self._choices
        drops, most = self._depths
        constraints = [LinearConstraint(choices, ones, ones), LinearConstraint(drops, -np.inf, most)]
        constraints += [LinearConstraint(row[None], -np.inf, upper) for row, upper in limits]
        result = milp(self.loss, constraints=constraints, integrality=np.ones(self.size), bounds=Bounds(0, 1))
        if result.x is None:
            return None
        chosen = {b.name: b.value for b, x in zip(self.blocks, result.x, strict=True) if x > 0.5}
        parameters = self.space.parameters
        return parameters.to_subnet({**parameters.from_subnet(self.space.largest), **chosen})

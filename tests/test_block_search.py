"""Block search checked by enumeration of a small space: its program is exact if losses and costs are additive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from nas.recipe.objectives import Bound
from nas.studies.block_search import block_solutions, blocks, replacements
from search_spaces import InputError, SearchSpace, SubnetConfig

HEADS, WIDTHS, DEPTHS = [2, 4, 8], [16, 64], [1, 2, 3]
PARENT = SubnetConfig.uniform((0, 1, 2), num_attention_heads=8, intermediate_size=64, hidden_size=64)
SPACE = SearchSpace(PARENT, num_hidden_layers=DEPTHS, num_attention_heads=HEADS, intermediate_size=WIDTHS)
RNG = np.random.default_rng(0)
LOSS = {
    (i, kind, v): RNG.uniform(0, 1) / v for i in range(3) for kind, vs in (("h", HEADS), ("w", WIDTHS)) for v in vs
}


def loss(subnet: SubnetConfig) -> float:
    """A sum over blocks; a dropped layer loses slightly more than its narrowest blocks."""
    position = {layer: k for k, layer in enumerate(subnet.layers)}
    total = 0.0
    for i in range(3):
        if i in position:
            total += LOSS[i, "h", subnet.num_attention_heads[position[i]]]
            total += LOSS[i, "w", subnet.intermediate_size[position[i]]]
        else:
            total += 0.4 + 0.2 * i
    return total


def macs(subnet: SubnetConfig) -> float:
    return float(
        10 + sum(3 * h + w for h, w in zip(subnet.num_attention_heads, subnet.intermediate_size, strict=True))
    )


def cost(name: str, subnets: Sequence[SubnetConfig]) -> np.ndarray:
    exponent = 1.6 if name == "latency_ms" else 1.0
    return np.array([macs(subnet) ** exponent for subnet in subnets])


def all_subnets() -> list[SubnetConfig]:
    parameters = SPACE.parameters
    names = parameters.distributions()
    values: dict[str, tuple[Any, ...]] = {"layers": (False, True), "num": tuple(HEADS), "int": tuple(WIDTHS)}
    choices = [next(v for k, v in values.items() if name.startswith(k)) for name in names]
    return list({parameters.to_subnet(dict(zip(names, c, strict=True))) for c in product(*choices)})


def scores(subnets: Sequence[SubnetConfig]) -> Mapping[str, float]:
    return {subnet.key: loss(subnet) for subnet in subnets}


def solve(**changes: Any) -> list[SubnetConfig]:
    arguments: dict[str, Any] = {"objectives": ["macs"], "bounds": {}, "limit": 25, **changes}
    losses = arguments.pop("losses", scores(replacements(SPACE)))
    return block_solutions(SPACE, losses, cost, **arguments)


def test_every_block_is_replaced_once_in_the_largest() -> None:
    subnets = replacements(SPACE)
    assert subnets[0] == SPACE.largest and len(subnets) == len(set(subnets)) == 1 + 3 * (1 + 2 + 1)
    assert all(macs(subnet) < macs(SPACE.largest) for subnet in subnets[1:])


def test_solutions_have_the_smallest_loss_within_their_cost() -> None:
    all_subnetworks = all_subnets()
    solutions = solve()
    assert len(solutions) >= 8 and [macs(s) for s in solutions] == sorted(macs(s) for s in solutions)
    for subnet in solutions:
        assert loss(subnet) == pytest.approx(
            min(loss(other) for other in all_subnetworks if macs(other) <= macs(subnet))
        )


@pytest.mark.parametrize("share", [0.1, 0.15, 0.2, 0.25, 0.3])
def test_bounds_hold_for_true_costs_that_are_not_additive(share: float) -> None:
    bound = Bound("<=", share * cost("latency_ms", [SPACE.largest])[0])
    best = min(loss(s) for s in all_subnets() if cost("latency_ms", [s])[0] <= bound.value)
    for objectives in (["latency_ms"], []):
        solutions = solve(objectives=objectives, bounds={"latency_ms": bound})
        assert max(cost("latency_ms", solutions)) <= bound.value
        assert min(map(loss, solutions)) <= 1.1 * best


def test_a_block_without_a_score_is_never_chosen() -> None:
    losses = dict(scores(replacements(SPACE)))
    missing = next(b for b in blocks(SPACE) if b.name == "num_attention_heads.1" and b.value == 2)
    losses[missing.subnet.key] = float("nan")
    for subnet in solve(losses=losses):
        assert 1 not in subnet.layers or subnet.num_attention_heads[subnet.layers.index(1)] != 2


def test_several_costs_share_the_budgets_and_the_limit_holds() -> None:
    solutions = solve(objectives=["macs", "latency_ms"], limit=12)
    assert 4 < len(solutions) <= 12


def test_unsolvable_problems_are_refused() -> None:
    with pytest.raises(InputError, match="the smallest subnetwork reaches macs"):
        solve(bounds={"macs": Bound("<=", 5.0)})
    with pytest.raises(InputError, match="per-layer"):
        replacements(SearchSpace(PARENT, num_attention_heads=HEADS, scope="uniform"))
    with pytest.raises(InputError, match="evaluate them first"):
        solve(losses={})

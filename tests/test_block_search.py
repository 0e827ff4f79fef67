"""Block search on spaces small enough to try everything: its program is exact where losses and costs add up."""

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
    """Adds up over blocks; a dropped layer loses a little more than its narrowest blocks."""
    place = {layer: k for k, layer in enumerate(subnet.layers)}
    total = 0.0
    for i in range(3):
        if i in place:
            total += LOSS[i, "h", subnet.num_attention_heads[place[i]]]
            total += LOSS[i, "w", subnet.intermediate_size[place[i]]]
        else:
            total += 0.4 + 0.2 * i
    return total


def macs(subnet: SubnetConfig) -> float:
    return float(
        10 + sum(3 * h + w for h, w in zip(subnet.num_attention_heads, subnet.intermediate_size, strict=True))
    )


def cost(name: str, subnets: Sequence[SubnetConfig]) -> np.ndarray:
    bent = 1.6 if name == "latency_ms" else 1.0
    return np.array([macs(subnet) ** bent for subnet in subnets])


def everything() -> list[SubnetConfig]:
    parameters = SPACE.parameters
    names = parameters.distributions()
    values: dict[str, tuple[Any, ...]] = {"layers": (False, True), "num": tuple(HEADS), "int": tuple(WIDTHS)}
    choices = [next(v for k, v in values.items() if name.startswith(k)) for name in names]
    return list({parameters.to_subnet(dict(zip(names, c, strict=True))) for c in product(*choices)})


def scores(subnets: Sequence[SubnetConfig]) -> Mapping[str, float]:
    return {subnet.key: loss(subnet) for subnet in subnets}


def solve(**changes: Any) -> list[SubnetConfig]:
    asked: dict[str, Any] = {"objectives": ["macs"], "bounds": {}, "limit": 25, **changes}
    losses = asked.pop("losses", scores(replacements(SPACE)))
    return block_solutions(SPACE, losses, cost, **asked)


def test_every_block_is_replaced_once_in_the_largest() -> None:
    tried = replacements(SPACE)
    assert tried[0] == SPACE.largest and len(tried) == len(set(tried)) == 1 + 3 * (1 + 2 + 1)
    assert all(macs(subnet) < macs(SPACE.largest) for subnet in tried[1:])


def test_solutions_are_the_best_of_everything_within_their_cost() -> None:
    all_of_them = everything()
    found = solve()
    assert len(found) >= 8 and [macs(s) for s in found] == sorted(macs(s) for s in found)
    for subnet in found:
        assert loss(subnet) == pytest.approx(min(loss(other) for other in all_of_them if macs(other) <= macs(subnet)))


@pytest.mark.parametrize("share", [0.1, 0.15, 0.2, 0.25, 0.3])
def test_bounds_hold_for_the_true_cost_where_costs_do_not_add_up(share: float) -> None:
    bound = Bound("<=", share * cost("latency_ms", [SPACE.largest])[0])
    best = min(loss(s) for s in everything() if cost("latency_ms", [s])[0] <= bound.value)
    for objectives in (["latency_ms"], []):
        found = solve(objectives=objectives, bounds={"latency_ms": bound})
        assert max(cost("latency_ms", found)) <= bound.value
        assert min(map(loss, found)) <= 1.1 * best


def test_a_block_without_a_score_is_never_chosen() -> None:
    losses = dict(scores(replacements(SPACE)))
    missing = next(b for b in blocks(SPACE) if b.name == "num_attention_heads.1" and b.value == 2)
    losses[missing.subnet.key] = float("nan")
    for subnet in solve(losses=losses):
        assert 1 not in subnet.layers or subnet.num_attention_heads[subnet.layers.index(1)] != 2


def test_several_costs_share_the_budgets_and_the_limit_holds() -> None:
    found = solve(objectives=["macs", "latency_ms"], limit=12)
    assert 4 < len(found) <= 12


def test_what_cannot_be_solved_is_said() -> None:
    with pytest.raises(InputError, match="the smallest subnetwork reaches macs"):
        solve(bounds={"macs": Bound("<=", 5.0)})
    with pytest.raises(InputError, match="per-layer"):
        replacements(SearchSpace(PARENT, num_attention_heads=HEADS, scope="uniform"))
    with pytest.raises(InputError, match="evaluate them first"):
        solve(losses={})

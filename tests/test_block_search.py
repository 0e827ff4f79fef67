"""Block search checked by enumeration of a small space: its program is exact if losses and costs are additive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from toy_tasks import SENTENCES, causal, tokenizer

from nas.fronts.point import Point
from nas.recipe.objectives import Bound
from nas.recipe.schema import Recipe
from nas.studies.block_search import block_solutions, blocks, replacements
from nas.studies.budget import BLOCKS_SHARE, evaluation_budget
from nas.studies.evaluator import Evaluator
from nas.studies.search_loop import startup_phases
from nas.supernets.supernet import Supernet
from nas.tasks.batches import model_inputs
from nas.tasks.context import TaskContext
from nas.tasks.types.language_modeling import PARENT_DIVERGENCE
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


def decoder(folder: Path, **sections: Any) -> dict[str, Any]:
    """A recipe of a small language model that is not trained."""
    task = {"type": "text-generation", "train": str(folder / "lm.txt"), "test": str(folder / "lm.txt")}
    return {
        "model": str(folder / "lm"),
        "task": {**task, "max_length": 8, "search_examples": 5},
        "objectives": {"loss": "minimize", "num_parameters": "minimize"},
        "supernet": {"strategy": "none"},
        **sections,
    }


@pytest.mark.parametrize(
    ("sections", "sampler"),
    [
        ({}, "BlockSearch"),
        ({"supernet": {"strategy": "sandwich"}}, "SurrogateSampler"),
        ({"space": {"scope": "uniform", "num_hidden_layers": [1, 2]}}, "SurrogateSampler"),
        ({"objectives": {"loss": "minimize", "tokens_per_second": "maximize"}}, "SurrogateSampler"),
        ({"search": {"sampler": "TPESampler"}}, "TPESampler"),
    ],
)
def test_block_search_is_the_default_for_pretrained_decoders(
    sections: dict[str, Any], sampler: str, tmp_path: Path
) -> None:
    assert Recipe.parse(decoder(tmp_path, **sections)).search.sampler == sampler


def test_by_default_a_search_has_evaluations_for_every_block(tmp_path: Path) -> None:
    wide = SearchSpace(PARENT, num_attention_heads=range(1, 9), intermediate_size=range(1, 65))
    needed = len(replacements(wide))
    recipe = Recipe.parse(decoder(tmp_path))
    assert needed > 200 and BLOCKS_SHARE * evaluation_budget(recipe, wide) >= needed
    evaluator: Any = SimpleNamespace(recipe=recipe, cost=cost, feasible=lambda _: True, block_score=PARENT_DIVERGENCE)
    scored, _ = startup_phases(recipe, wide, evaluator, evaluation_budget(recipe, wide), lambda: 1.0)
    assert {*replacements(wide)} <= {*scored({})}
    for search, budget in ({"evaluations": 50}, 50), ({"sampler": "TPESampler"}, 200):
        assert evaluation_budget(Recipe.parse(decoder(tmp_path, search=search)), wide) == budget
    assert evaluation_budget(recipe, SearchSpace(PARENT, intermediate_size=[32, 64])) == 8


def test_blocks_of_a_decoder_are_scored_by_their_divergence_from_the_parent(tmp_path: Path) -> None:
    """The reference has all logits of both; scoring another subnetwork in between changes nothing."""
    tokenizer(tmp_path / "lm")
    parent = causal(tmp_path / "lm")
    (tmp_path / "lm.txt").write_text("".join(f"{sentence}\n" for sentence in SENTENCES))
    context = TaskContext(Recipe.parse(decoder(tmp_path)))
    evaluator = Evaluator(context.recipe, Supernet(context.load_model()), context.splits.search, {})
    scorer, full = evaluator.scorer, evaluator.supernet.parent
    narrow = full.with_values(intermediate_size=tuple(size // 2 for size in full.intermediate_size))
    scores = [scorer(subnet, None).scores[PARENT_DIVERGENCE][0] for subnet in (narrow, full, narrow)]
    model, apart = evaluator.supernet.extract(narrow).eval(), list[torch.Tensor]()
    with torch.inference_mode():
        for batch in context.splits.search.batches:
            own, target = (each(**model_inputs(batch)).logits[:, :-1].log_softmax(-1) for each in (model, parent))
            apart += (target.exp() * (target - own)).sum(-1).mean(-1)
    assert scores == pytest.approx([float(torch.stack(apart).mean()), 0.0, scores[0]], abs=1e-6) and scores[0] > 1e-4


def test_solutions_go_by_the_divergence_and_too_few_evaluations_score_no_blocks(tmp_path: Path) -> None:
    recipe = Recipe.parse(decoder(tmp_path, objectives={"loss": "minimize", "macs": "minimize"}))
    evaluator: Any = SimpleNamespace(recipe=recipe, cost=cost, feasible=lambda _: True, block_score=PARENT_DIVERGENCE)

    def phases(budget: int) -> list[Any]:
        return list(startup_phases(recipe, SPACE, evaluator, budget, lambda: 1.0))

    scored, combined = phases(30)
    planned = scored({})
    assert {*replacements(SPACE)} <= {*planned}
    points = {s.key: Point(s, {"loss": -loss(s), PARENT_DIVERGENCE: loss(s)}) for s in planned}
    by_divergence = solve(limit=(30 - len(replacements(SPACE))) // 2)
    assert combined(points) == by_divergence
    old = {key: Point(point.subnet, {"loss": loss(point.subnet)}) for key, point in points.items()}
    assert combined(old) == by_divergence, "an earlier version wrote no divergences"
    of_channels = SearchSpace(PARENT, hidden_size=[32, 64])
    assert len(startup_phases(recipe, of_channels, evaluator, 30, lambda: 1.0)) == 1, "no layer has a choice"
    few = phases(8)
    assert not {*replacements(SPACE)} <= {*few[0]({})} and few[1]({}) == []

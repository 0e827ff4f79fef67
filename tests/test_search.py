"""Startup trials under loose, tight and impossible bounds, and the front of a finished search."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.studies.evaluator import Evaluator
from nas.studies.startup_trials import extreme_subnets, feasible_samples, first_distinct, startup_subnets
from nas.supernets.space import search_space
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from predictors import SubnetPredictor, Workload
from search_spaces import InputError


def evaluator(text_recipe: Path, *overrides: str) -> Evaluator:
    """An evaluator over an untrained tiny BERT, with a latency that is the sum of its widths."""
    recipe = Recipe.load(text_recipe, overrides)
    context = TaskContext(recipe)
    space, rng = search_space(context), Random(0)
    subnets = first_distinct(iter(space.sample(rng) for _ in range(40)), 30)
    latency = [1.0 + sum(s.num_attention_heads) + sum(s.intermediate_size) / 24 for s in subnets]
    predictor = SubnetPredictor.fit(space, subnets, latency, Workload(), macs=latency)
    return Evaluator(recipe, Supernet(context.load_model()), context.splits.search, {"latency_ms": predictor})


def test_startup_subnets_meet_a_bound_that_only_the_smallest_meets(text_recipe: Path) -> None:
    loose = evaluator(text_recipe)
    space = search_space(TaskContext(loose.recipe))
    sizes = sorted(
        {
            round(1e6 * loose.counts.count(["size_mb"], [s])["size_mb"][0])
            for s in [space.smallest, *space.neighbours(space.smallest)]
        }
    )
    tight = evaluator(text_recipe, f'constraints.size_mb="<= {sizes[0] / 1e6}"')
    assert {(s.num_attention_heads, s.intermediate_size) for s in startup_subnets(space, tight, tight.recipe, 10)} == {
        ((1,), (24,))
    }
    wider = evaluator(text_recipe, f'constraints.size_mb="<= {sizes[-1] / 1e6}"')
    samples = first_distinct(feasible_samples(space, wider, Random(0)), 5)
    assert len(samples) == 5 and all(wider.feasible(subnet) for subnet in samples)


def test_a_bound_that_nothing_meets_is_refused(text_recipe: Path) -> None:
    never = evaluator(text_recipe, 'constraints.latency_ms="<= 0.5"')
    space = search_space(TaskContext(never.recipe))
    with pytest.raises(InputError, match=r"the closest reaches latency_ms .* for `<= 0.5`"):
        next(feasible_samples(space, never, Random(0)))


def test_startup_subnets_begin_with_the_extreme_ones_and_stay_within_the_budget(text_recipe: Path) -> None:
    free = evaluator(text_recipe)
    space = search_space(TaskContext(free.recipe))
    first = startup_subnets(space, free, free.recipe, 40)
    assert set(extreme_subnets(space)) <= set(first) and len(first) == len(set(first)) <= 40
    assert len(startup_subnets(space, free, free.recipe, 3)) == 3


def test_no_verified_subnetwork_beats_the_front(finished: tuple[Path, Path]) -> None:
    run = Run(finished[1])
    front, verified = run.front(), [p for p in run.verified_points() if p.source != "parent"]
    for point in verified:
        assert not any(
            point.values["accuracy"] >= best.values["accuracy"]
            and point.values["latency_ms"] <= best.values["latency_ms"]
            and point.values != best.values
            for best in front
        )
    volumes = run.results()["hypervolume"]
    assert volumes["search"] >= max(volumes["uniform"], volumes["sampler"])
    uniform = {p.key for p in verified if p.source == "uniform"}
    assert uniform <= {p.key for p in verified if p.source == "search"}

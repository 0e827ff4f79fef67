"""Startup trials: the subnetworks a search evaluates before its sampler, and random ones that meet constraints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from nas.recipe.objectives import against_bounds, is_cost, total_violation
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.studies.evaluator import Evaluator
from nas.studies.pick import front_so_far
from search_spaces import InputError, SearchSpace, SubnetConfig
from search_spaces.layer_drop import evenly_spaced

STARTUP_FRACTION = 0.1
"""Share of the budget for random subnetworks."""
MAX_RANDOM = 100
"""No more random subnetworks are planned, whatever the budget, nor more of the fronts of earlier runs."""
MAX_REJECTED = 2000
"""Random subnetworks tried in a row, for one that is feasible or new."""


def startup_subnets(
    space: SearchSpace,
    evaluator: Evaluator,
    recipe: Recipe,
    budget: int,
    warm: Sequence[SubnetConfig] = (),
    most_random: float = MAX_RANDOM,
) -> list[SubnetConfig]:
    """What the search evaluates before it uses its sampler, the same on each call.

    Args:
        space: All subnetworks.
        evaluator: Whether they meet the constraints on costs.
        recipe: Of the run.
        budget: Evaluations of the search.
        warm: Subnetworks of earlier runs; they come after the extreme ones and before random ones.
        most_random: No more random ones, as time does not suffice for them.
    """
    rng = Random(f"{recipe.seed}/startup")
    n_random = max(1, int(min(STARTUP_FRACTION * budget, MAX_RANDOM, most_random)))
    random = first_distinct(feasible_samples(space, evaluator, rng), n_random)
    return first_distinct(iter([*first_subnets(space, evaluator, warm), *random]), budget)


def first_subnets(space: SearchSpace, evaluator: Evaluator, warm: Sequence[SubnetConfig] = ()) -> list[SubnetConfig]:
    """The extreme subnetworks and those of earlier runs, as far as they meet the constraints on costs."""
    return [subnet for subnet in (*extreme_subnets(space), *warm) if evaluator.feasible(subnet)]


def warm_start(recipe: Recipe, space: SearchSpace) -> list[SubnetConfig]:
    """The subnetworks of the space that are on the fronts of ``search.earlier``, verified or predicted."""
    fronts = [front_so_far(Run(folder)) for folder in recipe.search.earlier]
    return first_distinct((point.subnet for front in fronts for point in front if point.subnet in space), MAX_RANDOM)


def feasible_samples(space: SearchSpace, evaluator: Evaluator, rng: Random) -> Iterator[SubnetConfig]:
    """Random subnetworks that meet the constraints on costs, without end.

    After thousands in a row that do not, the constraints are taken as tight: the others are random steps from feasible
    ones, first from the extreme subnetworks of the space and its uniform scalings.

    Raises:
        InputError: If none of these is feasible either; names the closest and its costs.
    """
    feasible = [subnet for subnet in extreme_subnets(space) if evaluator.feasible(subnet)]
    n_rejected = 0
    while True:
        subnet = space.sample(rng)
        if evaluator.feasible(subnet):
            n_rejected = MAX_REJECTED if n_rejected == MAX_REJECTED else 0
        elif n_rejected < MAX_REJECTED:
            n_rejected += 1
            continue
        elif feasible:
            neighbours = space.neighbours(rng.choice(feasible))
            subnet = rng.choice([step for step in neighbours if evaluator.feasible(step)] or feasible)
        else:
            _raise_infeasible(extreme_subnets(space), evaluator)
        feasible.append(subnet)
        yield subnet


def extreme_subnets(space: SearchSpace) -> list[SubnetConfig]:
    """The parent, the largest, the smallest, the uniform scalings between them, evenly spaced layers of the parent.

    Pretrained layers that are kept whole recover fastest, and evenly spaced ones better than the most important ones.
    The parent and its layers are left out where they are not in the space.
    """
    whole = [subnet for subnet in (space.parent, *evenly_spaced(space)) if subnet in space]
    return [*whole[:1], space.largest, space.smallest, *space.uniform_scalings(), *whole[1:]]


def _raise_infeasible(subnets: Sequence[SubnetConfig], evaluator: Evaluator) -> None:
    bounds = {name: bound for name, bound in evaluator.recipe.bounds.items() if is_cost(name)}
    closest = min(subnets, key=lambda subnet: total_violation(evaluator.costs(subnet), bounds))
    raise InputError(
        f"none of {MAX_REJECTED} random subnetworks meets the constraints, nor does the largest, the smallest or a "
        f"uniform scaling; the closest reaches {against_bounds(evaluator.costs(closest), bounds)} ({closest}). Loosen "
        "the constraint, or widen `space` in a new run."
    )


def first_distinct(subnets: Iterator[SubnetConfig], limit: int) -> list[SubnetConfig]:
    """The first so many different subnetworks; fewer if an endless iterator only repeats itself."""
    distinct: dict[str, SubnetConfig] = {}
    n_repeated = 0
    for subnet in subnets:
        n_repeated = n_repeated + 1 if subnet.key in distinct else 0
        distinct.setdefault(subnet.key, subnet)
        if len(distinct) >= limit or n_repeated > MAX_REJECTED:
            break
    return list(distinct.values())

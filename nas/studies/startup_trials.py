"""Plan: what a search evaluates before its sampler has a say, and how random subnetworks meet tight constraints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from nas.recipe.objectives import COSTS, against_bounds, total_violation
from nas.recipe.schema import Recipe
from nas.studies.evaluator import Evaluator
from search_spaces import InputError, SearchSpace, SubnetConfig

STARTUP_FRACTION = 0.1
REJECTIONS = 2000


def plan(space: SearchSpace, evaluator: Evaluator, recipe: Recipe, budget: int) -> list[SubnetConfig]:
    """What the search evaluates before its sampler has a say, the same each time it is asked."""
    rng = Random(f"{recipe.seed}/startup")
    feasible = [subnet for subnet in corners(space) if evaluator.feasible(subnet)]
    random = distinct(feasible_samples(space, evaluator, rng), max(1, int(STARTUP_FRACTION * budget)))
    return distinct(iter([*feasible, *random]), budget)


def feasible_samples(space: SearchSpace, evaluator: Evaluator, rng: Random) -> Iterator[SubnetConfig]:
    """Random subnetworks that meet the constraints on costs.

    Where thousands in a row do not, the constraints are tight: the rest are random steps from ones that do, beginning
    with the corners of the space and its uniform scalings.

    Raises:
        InputError: If none of these does either; names the closest and what it reaches.
    """
    known = [subnet for subnet in corners(space) if evaluator.feasible(subnet)]
    rejected = 0
    while True:
        subnet = space.sample(rng)
        if evaluator.feasible(subnet):
            rejected = REJECTIONS if rejected == REJECTIONS else 0
        elif rejected < REJECTIONS:
            rejected += 1
            continue
        elif known:
            near = space.neighbours(rng.choice(known))
            subnet = rng.choice([step for step in near if evaluator.feasible(step)] or known)
        else:
            _refuse(corners(space), evaluator)
        known.append(subnet)
        yield subnet


def corners(space: SearchSpace) -> list[SubnetConfig]:
    """The parent where the space holds it, the largest, the smallest and the uniform scalings between them."""
    parent = [space.parent] if space.parent in space else []
    return [*parent, space.largest, space.smallest, *space.uniform_scalings()]


def _refuse(tried: Sequence[SubnetConfig], evaluator: Evaluator) -> None:
    bounds = {name: bound for name, bound in evaluator.recipe.bounds.items() if name in COSTS}
    closest = min(tried, key=lambda subnet: total_violation(evaluator.costs(subnet), bounds))
    raise InputError(
        f"none of the {REJECTIONS} subnetworks tried meets the constraints, nor any corner of the space; the closest "
        f"corner reaches {against_bounds(evaluator.costs(closest), bounds)} ({closest}). Loosen the constraint or "
        "widen `space`, in a new run."
    )


def distinct(subnets: Iterator[SubnetConfig], limit: int) -> list[SubnetConfig]:
    """The first so many different ones; gives up on an endless stream that has no more to offer."""
    found: dict[str, SubnetConfig] = {}
    repeats = 0
    for subnet in subnets:
        repeats = repeats + 1 if subnet.key in found else 0
        found.setdefault(subnet.key, subnet)
        if len(found) >= limit or repeats > REJECTIONS:
            break
    return list(found.values())

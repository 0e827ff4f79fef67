"""The search: an Optuna study over the space, and its two baselines as studies beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import optuna
from optuna.trial import TrialState

from nas.config import Recipe
from nas.evaluator import Evaluator, SpaceProblem
from nas.figures import COSTS, excess, reached
from nas.front import ParetoFront
from nas.progress import progress
from nas.sampler import SurrogateSampler
from nas.study import STUDIES, open_study, points, record, tell
from search_spaces import InputError, SearchSpace, SubnetConfig

STARTUP_FRACTION = 0.1
REJECTIONS = 2000


def run_search(path: Path, recipe: Recipe, space: SearchSpace, evaluator: Evaluator) -> None:
    """Runs what is missing of the search and of both baselines.

    Raises:
        InputError: If no subnetwork of the space meets the constraints on costs.
    """
    studies = {name: open_study(path, name, recipe) for name in STUDIES}
    for study in studies.values():
        for point in points(study):
            evaluator.known.setdefault(point.subnet.key, point)
    budget = min(recipe.search.evaluations, space.size)
    _search(studies["search"], recipe, space, evaluator, budget)
    _walk(studies["uniform"], "uniform", space.uniform_scalings(), space, evaluator)
    random = distinct(feasible_samples(space, evaluator, Random(f"{recipe.seed}/random")), budget)
    _walk(studies["random"], "random", random, space, evaluator)


def _search(study: optuna.Study, recipe: Recipe, space: SearchSpace, evaluator: Evaluator, budget: int) -> None:
    """Corners, uniform scalings and feasible random subnetworks first, then the sampler, up to the budget.

    Evaluations are distinct subnetworks. A sampler that keeps proposing known ones is stopped after as many trials
    again as the budget.
    """
    start = plan(space, evaluator, recipe, budget)
    surrogate = surrogate_sampler(recipe, space, evaluator)
    with progress("search") as report:
        while True:
            trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            done = len({trial.user_attrs["key"] for trial in trials})
            report(done, budget, describe(study, recipe))
            if done >= budget or len(trials) >= 2 * budget:
                return
            if len(trials) < len(start):
                record(study, start[len(trials)], space, evaluator)
            else:
                study.sampler = surrogate or optuna_sampler(recipe, len(trials))
                trial = study.ask()
                tell(study, trial, evaluator(space.suggest(trial)), evaluator)


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
    """The largest, the smallest and the uniform scalings between them."""
    return [space.largest, space.smallest, *space.uniform_scalings()]


def _refuse(tried: Sequence[SubnetConfig], evaluator: Evaluator) -> None:
    bounds = {name: bound for name, bound in evaluator.recipe.bounds.items() if name in COSTS}
    closest = min(tried, key=lambda subnet: excess(evaluator.costs(subnet), bounds))
    raise InputError(
        f"none of the {REJECTIONS} subnetworks tried meets the constraints, nor any corner of the space; the closest "
        f"corner reaches {reached(evaluator.costs(closest), bounds)} ({closest}). Loosen the constraint or widen "
        "`space`, in a new run."
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


def _walk(
    study: optuna.Study, name: str, subnets: Sequence[SubnetConfig], space: SearchSpace, evaluator: Evaluator
) -> None:
    """Evaluates a fixed list of subnetworks into a study."""
    done = {trial.user_attrs["key"] for trial in study.get_trials(deepcopy=False)}
    with progress(name) as report:
        for number, subnet in enumerate(subnets):
            if subnet.key not in done:
                record(study, subnet, space, evaluator)
            report(number + 1, len(subnets), describe(study, evaluator.recipe))


def surrogate_sampler(recipe: Recipe, space: SearchSpace, evaluator: Evaluator) -> SurrogateSampler | None:
    """Our sampler, which knows the cost of every subnetwork, where the recipe names it."""
    if recipe.search.sampler != "SurrogateSampler":
        return None
    problem = SpaceProblem(space, evaluator)
    return SurrogateSampler(space.distributions(), problem, seed=recipe.seed, **recipe.search.sampler_options)


def optuna_sampler(recipe: Recipe, finished: int) -> optuna.samplers.BaseSampler:
    """One of Optuna's samplers, seeded by how many trials have finished: a resumed search goes on as it would have.

    Optuna's samplers keep their state in the study, so a new one for each trial loses nothing.
    """
    options = {"multivariate": True, "n_startup_trials": 0} if recipe.search.sampler == "TPESampler" else {}
    made: Callable[..., optuna.samplers.BaseSampler] = getattr(optuna.samplers, recipe.search.sampler)
    return made(seed=recipe.seed * 1_000_003 + finished, **{**options, **recipe.search.sampler_options})


def check_sampler(recipe: Recipe) -> None:
    """Raises InputError unless the recipe's sampler takes its options."""
    try:
        if recipe.search.sampler == "SurrogateSampler":
            SurrogateSampler({}, **recipe.search.sampler_options)
        else:
            optuna_sampler(recipe, 0)
    except (TypeError, ValueError) as error:
        raise InputError(f"`search.sampler_options` must be arguments of {recipe.search.sampler}: {error}") from None


def describe(study: optuna.Study, recipe: Recipe) -> str:
    """The front so far in a few words."""
    front = ParetoFront.of(points(study), recipe.objectives)
    if not len(front):
        return "nothing feasible yet"
    best = front.best(recipe.quality)
    return f"{len(front)} on the front · best {recipe.quality} {best.values[recipe.quality]:.4f}"

"""The search: an Optuna study over the space, and its two baselines as studies beside it, in one journal file."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from nas.config import COSTS, Recipe
from nas.evaluation import EvaluationSet, score
from nas.front import ParetoFront
from nas.point import Point
from nas.progress import progress
from nas.run import write_text
from nas.sampler import Params, SurrogateSampler
from nas.supernet import Supernet
from predictors import AnalyticCosts, LatencyPredictor
from search_spaces import InputError, SearchSpace, SubnetConfig

STUDIES = ("search", "uniform", "random")
"""The search and its baselines (law 6): uniform scaling, and random search at the same number of evaluations."""

STARTUP_FRACTION = 0.1
REJECTIONS = 2000


@dataclass
class Evaluator:
    """Figures of any subnetwork of a run: quality on the search slice, predicted latency, exact counts.

    Quality is measured on the supernet with the subnetwork active, once for each subnetwork.
    """

    recipe: Recipe
    supernet: Supernet
    examples: EvaluationSet
    predictor: LatencyPredictor
    known: dict[str, Point] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.counts = AnalyticCosts.of(self.supernet.model)

    def cost(self, name: str, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """One cost of many subnetworks (n,), known without running them."""
        if name == "latency_ms":
            return self.predictor.predict(subnets)
        length = self.recipe.workload.sequence_length
        return np.array([self.counts.count(name, subnet, length) for subnet in subnets])

    def costs(self, subnet: SubnetConfig) -> dict[str, float]:
        """Every cost of one subnetwork."""
        return {name: float(self.cost(name, [subnet])[0]) for name in COSTS}

    def violations(self, figures: dict[str, float]) -> dict[str, float]:
        """Constraint -> how far it is missed; at most 0 where it holds. Figures not known yet are left out."""
        return {n: b.violation(figures[n]) for n, b in self.recipe.bounds.items() if n in figures}

    def feasible(self, subnet: SubnetConfig) -> bool:
        """Whether the constraints on costs hold."""
        return all(v <= 0 for v in self.violations(self.costs(subnet)).values())

    def __call__(self, subnet: SubnetConfig) -> Point:
        """Scores a subnetwork, or answers from what was scored before."""
        if subnet.key not in self.known:
            self.supernet.activate(subnet)
            scores = score(self.supernet.model, self.examples, self.recipe.qualities)
            values = {**{n: s.value for n, s in scores.items()}, **self.costs(subnet)}
            errors = {n: s.standard_error for n, s in scores.items()}
            errors["latency_ms"] = float(self.predictor.spread_ms([subnet])[0])
            feasible = all(v <= 0 for v in self.violations(values).values())
            self.known[subnet.key] = Point(subnet, values, errors, "search", measured=False, feasible=feasible)
        return self.known[subnet.key]


def open_storage(path: Path) -> JournalStorage:
    """Optuna's journal file. What a killed process left half-written at its end is cut off first.

    Raises:
        InputError: If a line in the middle is not readable.
    """
    backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
    Path(f"{path}.lock").unlink(missing_ok=True)
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
    try:
        return JournalStorage(backend)
    except Exception as error:
        raise InputError(
            f"`{path}` is damaged ({type(error).__name__}: {error}); move it away and type the same command again to "
            "search anew, the supernet and the measurements are kept."
        ) from None


def open_study(path: Path, name: str, recipe: Recipe) -> optuna.Study:
    """One study of a run, made or found again. Trials that a killed process left running are closed as failed."""
    study = optuna.create_study(
        storage=open_storage(path),
        study_name=name,
        directions=list(recipe.objectives.values()),
        load_if_exists=True,
    )
    study.set_metric_names(list(recipe.objectives))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


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
                _tell(study, trial, evaluator(space.suggest(trial)), evaluator)


def plan(space: SearchSpace, evaluator: Evaluator, recipe: Recipe, budget: int) -> list[SubnetConfig]:
    """What the search evaluates before its sampler has a say, the same each time it is asked."""
    rng = Random(f"{recipe.seed}/startup")
    known = [space.largest, space.smallest, *space.uniform_scalings()]
    feasible = [subnet for subnet in known if evaluator.feasible(subnet)]
    random = distinct(feasible_samples(space, evaluator, rng), max(1, int(STARTUP_FRACTION * budget)))
    return distinct(iter([*feasible, *random]), budget)


def feasible_samples(space: SearchSpace, evaluator: Evaluator, rng: Random) -> Iterator[SubnetConfig]:
    """Random subnetworks that meet the constraints on costs.

    Raises:
        InputError: If thousands in a row do not; names the closest and what it reaches.
    """
    rejected: list[SubnetConfig] = []
    while True:
        subnet = space.sample(rng)
        if evaluator.feasible(subnet):
            rejected.clear()
            yield subnet
            continue
        rejected.append(subnet)
        if len(rejected) >= REJECTIONS:
            _refuse([space.smallest, *rejected], evaluator)


def _refuse(tried: Sequence[SubnetConfig], evaluator: Evaluator) -> None:
    def excess(subnet: SubnetConfig) -> float:
        figures = evaluator.costs(subnet)
        bounds = evaluator.recipe.bounds
        return sum(max(v, 0) / max(abs(bounds[n].value), 1e-9) for n, v in evaluator.violations(figures).items())

    closest = min(tried, key=excess)
    figures = evaluator.costs(closest)
    bounds = {name: bound for name, bound in evaluator.recipe.bounds.items() if name in figures}
    reached = ", ".join(f"{name} {figures[name]:.4g} for `{bound}`" for name, bound in bounds.items())
    raise InputError(
        f"no subnetwork of the space meets the constraints; the closest of {len(tried)} reaches {reached} "
        f"({closest}). Loosen the constraint or add smaller choices to `space`."
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


def record(study: optuna.Study, subnet: SubnetConfig, space: SearchSpace, evaluator: Evaluator) -> None:
    """Evaluates a given subnetwork and adds it to the study as a finished trial."""
    point = evaluator(subnet)
    study.add_trial(
        optuna.create_trial(
            values=[point.values[name] for name in evaluator.recipe.objectives],
            params=space.to_params(subnet),
            distributions=space.distributions(),
            constraints=evaluator.violations(point.values),
            user_attrs=_attributes(point),
        )
    )


def _tell(study: optuna.Study, trial: optuna.Trial, point: Point, evaluator: Evaluator) -> None:
    for name, violation in evaluator.violations(point.values).items():
        trial.set_constraint(name, violation)
    for name, value in _attributes(point).items():
        trial.set_user_attr(name, value)
    study.tell(trial, [point.values[name] for name in evaluator.recipe.objectives])


def _attributes(point: Point) -> dict[str, Any]:
    return {"key": point.subnet.key, "point": point.to_dict()}


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


class SpaceProblem:
    """What the surrogate sampler may know of a search space: its costs, and which parameters mean the same."""

    def __init__(self, space: SearchSpace, evaluator: Evaluator) -> None:
        self.space = space
        self.evaluator = evaluator

    def key(self, params: Params) -> str:
        """The subnetwork's key: widths of dropped layers do not count."""
        return self.space.from_params(dict(params)).key

    def features(self, params: Sequence[Params]) -> np.ndarray:
        """The space's encoding of each subnetwork."""
        return np.stack([self.space.encode(self.space.from_params(dict(p))) for p in params])

    def known(self, params: Sequence[Params]) -> tuple[np.ndarray, np.ndarray]:
        """Costs among the objectives, NaN for qualities; and how far the constraints on costs are missed, relative."""
        recipe = self.evaluator.recipe
        subnets = [self.space.from_params(dict(p)) for p in params]
        columns = {name: self.evaluator.cost(name, subnets) for name in COSTS if name in recipe.figures}
        unknown = np.full(len(subnets), np.nan)
        values = np.stack([columns.get(name, unknown) for name in recipe.objectives], axis=1)
        violation = np.zeros(len(subnets))
        for name, bound in recipe.bounds.items():
            if name in columns:
                missed = np.array([bound.violation(value) for value in columns[name]])
                violation += np.maximum(missed, 0.0) / max(abs(bound.value), 1e-9)
        return values, violation


def points(study: optuna.Study, source: str | None = None) -> list[Point]:
    """What a study has evaluated, oldest first, each subnetwork once."""
    found: dict[str, Point] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        point = Point.from_dict({**trial.user_attrs["point"], "source": source or study.study_name})
        found.setdefault(point.subnet.key, point)
    return list(found.values())


def describe(study: optuna.Study, recipe: Recipe) -> str:
    """The front so far in a few words."""
    front = ParetoFront.of(points(study), recipe.objectives)
    if not len(front):
        return "nothing feasible yet"
    best = front.best(recipe.quality)
    return f"{len(front)} on the front · best {recipe.quality} {best.values[recipe.quality]:.4f}"


def trials_csv(studies: Iterable[optuna.Study]) -> str:
    """Every trial of a run as CSV: study, number, state, key, figures, violations, parameters, subnetwork."""
    rows = [_row(study.study_name, trial) for study in studies for trial in study.get_trials(deepcopy=False)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write_trials(path: Path, study_file: Path, recipe: Recipe) -> None:
    """Writes trials.csv from the studies."""
    write_text(path, trials_csv(open_study(study_file, name, recipe) for name in STUDIES))


def _row(study: str, trial: FrozenTrial) -> dict[str, Any]:
    row: dict[str, Any] = {"study": study, "number": trial.number, "state": trial.state.name}
    if "point" in trial.user_attrs:
        point = Point.from_dict(trial.user_attrs["point"])
        row |= {"key": point.subnet.key, **point.values, "feasible": point.feasible, "subnet": str(point.subnet)}
        row |= {f"violation:{name}": value for name, value in trial.constraints.items()}
    return row

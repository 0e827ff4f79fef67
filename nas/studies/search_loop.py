"""The search: an Optuna study over the space and its two baselines, evaluated in this process or by workers."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import optuna

from nas.fronts.point import Point
from nas.recipe.checks import BLOCK_SEARCH
from nas.recipe.objectives import is_cost
from nas.recipe.schema import Recipe
from nas.runs.files import digest
from nas.runs.progress import print_line, progress
from nas.runs.run import Run
from nas.studies.block_search import block_solutions, replacements
from nas.studies.budget import BLOCKS_SHARE, evaluation_budget
from nas.studies.concurrent_drivers import ConcurrentDrivers
from nas.studies.evaluation_cache import EvaluationCache
from nas.studies.evaluator import Evaluator
from nas.studies.interrupt import graceful_interrupt
from nas.studies.racing import Evaluate, Outcome, Scorer, evaluate_safely
from nas.studies.reuse import reuse_trials
from nas.studies.sampler import sampler_for
from nas.studies.startup_trials import (
    feasible_samples,
    first_distinct,
    first_subnets,
    startup_subnets,
    warm_start,
)
from nas.studies.stopping import SEARCH_SHARE, STARTUP_SHARE
from nas.studies.study import REPEAT, bind_study, driver_id, earlier_studies, open_repeats, open_studies, repeat_seed
from nas.studies.trial_queue import PendingEvaluation, StartupPhase, TrialQueue
from search_spaces import SearchSpace, SubnetConfig

MAX_REFILLS = 10
"""How often random search replaces subnetworks whose evaluation failed by others."""
Shared = tuple[SearchSpace, Evaluator, EvaluationCache]
"""What the queues of a run share."""
POLL_S = 0.2
"""Seconds between two reads of the storage while this driver waits for another one."""


def run_studies(
    run: Run,
    recipe: Recipe,
    space: SearchSpace,
    evaluator: Evaluator,
    execute: Callable[[EvaluationScheduler, Scorer], None],
) -> None:
    """Runs what is missing of the search, of both baselines and of the searches with other seeds.

    Args:
        run: Holds the studies, the supernet and the latency predictor.
        recipe: Objectives, constraints and budget of the search.
        space: All subnetworks.
        evaluator: Their values.
        execute: Makes all evaluations of a scheduler: `run_locally`, or a function that uses a cluster.

    Raises:
        InputError: If no subnetwork of the space meets the constraints, the studies belong to another recipe, space or
            supernet, or evaluations or the cluster fail.
        KeyboardInterrupt: After Ctrl-C, once the evaluations in flight are finished.
    """
    studies = open_studies(run.study, recipe) | open_repeats(run.study, recipe)
    files = {"supernet": run.supernet / "model.safetensors"}
    files |= {f"predictor{target.label}": target.predictor / "predictor.json" for target in run.targets}
    fingerprint = study_fingerprint(recipe, space, files)
    for study in studies.values():
        bind_study(study, fingerprint)
    earlier = earlier_studies(studies, fingerprint)
    driver = None if recipe.search.storage is None else driver_id(run.folder)
    scheduler = EvaluationScheduler(build_queues(studies, recipe, space, evaluator, driver, earlier))
    with graceful_interrupt(scheduler.stop), scheduler.reporting():
        execute(scheduler, evaluator.scorer)


def study_fingerprint(recipe: Recipe, space: SearchSpace, files: Mapping[str, Path]) -> dict[str, Any]:
    """What the values in a study depend on: parts of the recipe, the space, and the hash of each file that exists."""
    distributions = {name: str(distribution) for name, distribution in space.parameters.distributions().items()}
    text = json.dumps([distributions, space.layer_order], sort_keys=True)
    fingerprint: dict[str, Any] = {
        "objectives": list(recipe.objectives),
        "constraints": dict(recipe.constraints),
        "seed": recipe.seed,
        "space": hashlib.sha256(text.encode()).hexdigest()[:10],
    }
    return fingerprint | {name: digest(file) for name, file in files.items() if file.exists()}


def build_queues(
    studies: Mapping[str, optuna.Study],
    recipe: Recipe,
    space: SearchSpace,
    evaluator: Evaluator,
    driver: str | None = None,
    earlier: Sequence[optuna.Study] = (),
) -> list[TrialQueue]:
    """The queues of the search and its baselines; random search gets as many evaluations as the search has made.

    Args:
        studies: By kind, as `open_studies` and `open_repeats` return them.
        recipe: Of the run.
        space: All subnetworks.
        evaluator: Their values.
        driver: Id of this driver, where several share the studies.
        earlier: Studies of the run with other objectives or constraints; their evaluations are taken over.
    """
    cache = EvaluationCache()
    shared = (space, evaluator, cache)
    if n_reused := reuse_trials(studies, earlier, space, evaluator, cache):
        print_line(f"search     takes {n_reused} evaluations over, judged by the objectives and constraints of now")

    drivers = None if driver is None else ConcurrentDrivers(driver)
    repeated = [study for kind, study in studies.items() if kind.startswith(REPEAT)]
    seeds = [recipe.seed, *(repeat_seed(recipe, number) for number in range(1, len(repeated) + 1))]
    searches = [
        _search_queue(study, recipe.model_copy(update={"seed": seed}), shared, drivers)
        for study, seed in zip([studies["search"], *repeated], seeds, strict=True)
    ]
    scalings = space.uniform_scalings()
    uniform = TrialQueue(studies["uniform"], *shared, [lambda _: scalings], None, lambda: len(scalings), drivers)
    return [*searches, uniform, _random_queue(studies["random"], recipe, shared, drivers, searches)]


def _search_queue(
    study: optuna.Study, recipe: Recipe, shared: Shared, drivers: ConcurrentDrivers | None
) -> TrialQueue:
    """The queue of a search with the seed of its recipe; repeated searches share its time."""
    space, evaluator, _ = shared
    budget, limit_s = evaluation_budget(recipe, space), SEARCH_SHARE * recipe.search.seconds / recipe.search.seeds

    def seconds_each() -> float:
        return max(queue.seconds, 1e-9) / max(1, len(queue.evaluated_keys))

    phases = startup_phases(recipe, space, evaluator, budget, seconds_each)
    sampler = sampler_for(recipe, space, evaluator)
    queue = TrialQueue(study, *shared, phases, sampler, lambda: budget, drivers, lambda: limit_s)
    return queue


def _random_queue(
    study: optuna.Study,
    recipe: Recipe,
    shared: Shared,
    drivers: ConcurrentDrivers | None,
    searches: Sequence[TrialQueue],
) -> TrialQueue:
    """The queue of random search: as many evaluations as the first search has made, in the time that searches left."""
    space, evaluator, _ = shared

    def sample(complete: Mapping[str, Point]) -> list[SubnetConfig]:
        if queue.n_evaluations >= searches[0].n_evaluations:
            return []
        samples = feasible_samples(space, evaluator, Random(f"{recipe.seed}/random"))
        return first_distinct(samples, searches[0].n_evaluations + len(queue.failures))

    queue = TrialQueue(
        study,
        *shared,
        [sample] * MAX_REFILLS,
        None,
        lambda: searches[0].n_evaluations,
        drivers,
        lambda: recipe.search.seconds - sum(each.seconds for each in searches),
    )
    return queue


def startup_phases(
    recipe: Recipe, space: SearchSpace, evaluator: Evaluator, budget: int, seconds_each: Callable[[], float]
) -> list[StartupPhase]:
    """What a search evaluates before its sampler: startup trials, or for block search its two phases.

    If its time has a bound, the extreme subnetworks come first, and their time tells how many random ones it allows,
    or whether it suffices for the replacements of single blocks. If these are most of the evaluations, nothing is left
    to combine them: there are startup trials then.
    """
    warm, limit_s = warm_start(recipe, space), SEARCH_SHARE * recipe.search.seconds / recipe.search.seeds

    def first(complete: Mapping[str, Point]) -> list[SubnetConfig]:
        return first_distinct(iter(first_subnets(space, evaluator, warm)), budget)

    def startup(complete: Mapping[str, Point]) -> list[SubnetConfig]:
        return startup_subnets(space, evaluator, recipe, budget, warm, STARTUP_SHARE * limit_s / seconds_each())

    def blocks(complete: Mapping[str, Point]) -> list[SubnetConfig]:
        most = BLOCKS_SHARE * min(budget, math.inf if math.isinf(limit_s) else limit_s / seconds_each())
        if len(candidates) > most:
            print_line(
                f"blocks     {len(candidates)} replacements are too many for a search of {budget} evaluations and "
                "its time: not scored one by one; raise `search.evaluations` or `search.minutes`, or leave both out"
            )
            return startup(complete)
        return first_distinct(iter([*first_subnets(space, evaluator, warm), *candidates]), budget)

    def solutions(complete: Mapping[str, Point]) -> list[SubnetConfig]:
        n_scored = sum(subnet.key in complete for subnet in candidates)
        if 2 * n_scored < len(candidates):
            return []
        costs = [name for name, way in recipe.objectives.items() if is_cost(name) and way == "minimize"]
        bounds = {name: bound for name, bound in evaluator.recipe.bounds.items() if is_cost(name)}
        limit, losses = max(1, (budget - n_scored) // 2), block_losses(complete, evaluator)
        return block_solutions(space, losses, evaluator.cost, objectives=costs, bounds=bounds, limit=limit)

    before = [] if math.isinf(limit_s) else [first]
    candidates = replacements(space) if recipe.search.sampler == BLOCK_SEARCH else []
    has_blocks = len(candidates) > 1  # not where layers have no choices of their own
    return [*before, blocks, solutions] if has_blocks else [*before, startup]


def block_losses(complete: Mapping[str, Point], evaluator: Evaluator) -> dict[str, float]:
    """Key of each evaluated subnetwork -> its score as a replacement, signed to be minimised.

    It is the primary metric where some lack `Evaluator.block_score`, as an earlier version wrote them.
    """
    recipe, name = evaluator.recipe, evaluator.block_score
    if not all(name in point.values for point in complete.values()):
        name = recipe.primary_metric
    sign = -1.0 if recipe.objectives.get(name) == "maximize" else 1.0
    return {key: sign * point.values[name] for key, point in complete.items()}


class EvaluationScheduler:
    """Hands out the evaluations of several queues, one queue after the other, and records their outcomes."""

    def __init__(self, queues: Sequence[TrialQueue]) -> None:
        self.queues = list(queues)
        self.is_stopping = False
        self._bars = ExitStack()
        self._shown: TrialQueue | None = None

    def stop(self) -> None:
        """Hands out nothing more; outcomes of evaluations in flight are still recorded."""
        self.is_stopping = True

    def ask(self) -> PendingEvaluation | None:
        """The next evaluation to make; None if there is none before the outcome of one in flight is known."""
        for queue in [] if self.is_stopping else self.queues:
            self._show()
            evaluation = queue.ask()
            if evaluation is not None or not queue.is_done:
                return evaluation
        return None

    def tell(self, evaluation: PendingEvaluation, outcome: Outcome) -> None:
        """Records the outcome of an evaluation."""
        evaluation.queue.tell(evaluation, outcome)
        self._show()

    @property
    def is_finished(self) -> bool:
        """Whether nothing is in flight and nothing more will be handed out."""
        if any(queue.has_pending for queue in self.queues):
            return False
        return self.is_stopping or all(queue.is_done and not queue.waiting_for_other_drivers for queue in self.queues)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Shows the progress bar of the queue whose trials are evaluated."""
        with self._bars:
            yield
            self._show()

    def _show(self) -> None:
        active = next((queue for queue in self.queues if queue.running or not queue.is_done), self.queues[-1])
        first = 0 if self._shown is None else self.queues.index(self._shown)
        for queue in self.queues[first : self.queues.index(active) + 1]:
            if queue is not self._shown:
                self._bars.close()
                self._report = self._bars.enter_context(progress(queue.name))
            self._report(len(queue.evaluated_keys), max(queue.budget(), 1), queue.summary())
        self._shown = active


def run_locally(scheduler: EvaluationScheduler, evaluate: Evaluate) -> None:
    """Makes every evaluation in this process, one at a time, and waits for those that other drivers are making."""
    while not scheduler.is_finished:
        evaluation = scheduler.ask()
        if evaluation is not None:
            scheduler.tell(evaluation, evaluate_safely(evaluate, evaluation.subnet, evaluation.early_stopping))
        elif not scheduler.is_finished:
            time.sleep(POLL_S)

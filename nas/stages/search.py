"""The search stage: the studies of a run, evaluated in this process or on a Ray cluster."""

from __future__ import annotations

from contextlib import suppress

from nas.runs.run import Run
from nas.studies.evaluator import Evaluator
from nas.studies.racing import Scorer
from nas.studies.search_loop import Dispatcher, run_here, run_studies
from nas.studies.study import write_trials
from nas.supernets.load import load_supernet
from nas.tasks.context import TaskContext
from predictors import SubnetPredictor
from search_spaces import InputError


def run_search(run: Run, context: TaskContext, predictor: SubnetPredictor, cluster: str | None = None) -> None:
    """Runs what is missing of the search and of its baselines, and writes trials.csv.

    Args:
        run: Holds the supernet and the studies.
        context: Of its recipe.
        predictor: Of the latencies.
        cluster: Address of the Ray cluster whose workers evaluate, ``auto`` to find one; None: this process does.

    Raises:
        InputError: If the search cannot go on; trials.csv then holds what there is.
    """
    recipe = context.recipe
    supernet, space = load_supernet(run, context)
    evaluator = Evaluator(recipe, supernet, context.splits.search, predictor)

    def execute(dispatcher: Dispatcher, scorer: Scorer) -> None:
        if cluster is None:
            run_here(dispatcher, scorer)
        else:
            from nas.ray.search_driver import run_on_ray
            from nas.ray.search_worker import Package

            run_on_ray(dispatcher, Package.of(run.supernet, scorer), cluster, recipe.search)

    try:
        run_studies(run, recipe, space, evaluator, execute)
    except InputError:
        with suppress(InputError):
            write_trials(run.trials, run.study, recipe)
        raise
    write_trials(run.trials, run.study, recipe)

"""The search stage: the studies of a run, evaluated in this process or on a Ray cluster."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from nas.recipe.checks import check_constraints
from nas.recipe.objectives import is_cost
from nas.reports.summary import bounds_line, near_bound_line, predictor_line
from nas.runs.parent_values import read_parent_values, write_parent_values
from nas.runs.progress import print_line, progress
from nas.runs.run import Run
from nas.studies.evaluator import Evaluator
from nas.studies.near_ties import add_scores_on_more, near_ties, scores_on_more
from nas.studies.racing import Scorer
from nas.studies.search_loop import EvaluationScheduler, run_locally, run_studies
from nas.studies.study import STUDIES, evaluated_points, open_repeats, open_studies, search_seconds, write_trials
from nas.supernets.device import moved
from nas.supernets.load import load_supernet
from nas.supernets.space import input_sizes
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from predictors import AnalyticCosts
from predictors.measurement.budget import Budget
from search_spaces import InputError, SearchSpace


def run_search(run: Run, context: TaskContext, cluster: str | None = None) -> None:
    """Runs the missing evaluations of the search and of its baselines, and writes trials.csv.

    Args:
        run: The run, with its supernet and its latency predictor.
        context: The context of its recipe.
        cluster: Address of a Ray cluster that evaluates, ``auto`` to find one; None: this process evaluates.

    Raises:
        InputError: If the search cannot continue; trials.csv then has the trials so far.
    """
    recipe = context.recipe
    for target in run.targets:
        predictor = target.load_predictor()
        print_line(f"predictor{target.label}  {predictor_line(predictor)}")
        print_line(f"near{target.label}       {near_bound_line(predictor)}")
    supernet, space = load_supernet(run, context)
    counts = AnalyticCosts.from_model(supernet.model, supernet.layout, recipe.task.type, supernet.dtype)
    predictors = {name: each for target in run.targets for name, each in target.load_predictors(counts).items()}
    in_other_sizes = {size: context.of_size(size).splits.search for size in input_sizes(space)}
    evaluator = Evaluator(recipe, supernet, context.splits.search, predictors, in_other_sizes)
    if recipe.relative_bounds:
        values = _parent_values(run, context, evaluator)
        evaluator = replace(evaluator, recipe=recipe.with_parent(values))
        print_line(f"bounds     {bounds_line(recipe, values)}")
        check_constraints(evaluator.recipe)

    def execute(scheduler: EvaluationScheduler, scorer: Scorer) -> None:
        if cluster is None:
            run_locally(scheduler, scorer)
        else:
            from nas.ray.search_driver import run_on_ray
            from nas.ray.search_worker import WorkerPayload

            run_on_ray(scheduler, WorkerPayload.from_folder(run.supernet, scorer), cluster, recipe.search)

    try:
        run_studies(run, recipe, space, evaluator, execute)
    except InputError:
        with suppress(InputError):
            write_trials(run.trials, run.study, recipe)
        raise
    write_trials(run.trials, run.study, recipe)
    _score_near_ties(run, context, supernet, space)


def _score_near_ties(run: Run, context: TaskContext, supernet: Supernet, space: SearchSpace) -> None:
    """Scores what may be on the front on further examples, where there are some and `search.minutes` has time left."""
    recipe, more = context.recipe, context.splits.more
    studies = {**open_studies(run.study, recipe), **open_repeats(run.study, recipe)}
    budget = Budget(recipe.search.seconds - sum(map(search_seconds, studies.values())))
    if more is None:
        return
    known, names = scores_on_more(run), recipe.metric_names
    ties = {t.key: t for name in STUDIES for t in near_ties(evaluated_points(studies[name]), recipe, space)}
    missing = [tie for key, tie in ties.items() if not known.get(key, {}).keys() >= {*names}]
    if not missing:
        return
    with progress("near ties") as report:
        for number, tie in enumerate(missing, 1):
            if budget.is_over:
                break
            supernet.activate(tie.subnet)
            own = context.of(tie.subnet).splits.more
            assert own is not None
            scores = score(supernet.model, own, names)
            add_scores_on_more(run, tie.key, {name: (s.value, s.standard_error) for name, s in scores.items()})
            report(number, len(missing), tie.key)
    print_line(f"near ties  {len(ties)} subnetworks that noise may keep off the front, on {len(more)} more examples")


def _parent_values(run: Run, context: TaskContext, evaluator: Evaluator) -> dict[str, float]:
    """The values of the parent that bounds refer to: its metrics on the search split, its costs, stored in the run."""
    known, names = read_parent_values(run), context.recipe.relative_bounds
    if not names.keys() <= known.keys():
        costs = evaluator.costs(evaluator.supernet.parent)
        metrics = [name for name in names if not is_cost(name)]
        known |= {**costs, **(_parent_metrics(run, context, evaluator, metrics) if metrics else {})}
        write_parent_values(run, known)
    return known


def _parent_metrics(run: Run, context: TaskContext, evaluator: Evaluator, names: list[str]) -> dict[str, float]:
    """Metrics of the parent; a supernet that is not trained is the parent, whose weights are not loaded again."""
    supernet, model = evaluator.supernet, evaluator.supernet.model
    if context.recipe.supernet.is_trained:
        model = moved(context.load_model(run.parent), model.device).eval()
    else:
        supernet.activate(supernet.parent)
    return {name: each.value for name, each in score(model, context.splits.search, names).items()}

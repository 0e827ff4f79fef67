"""The finish stage: trains the chosen subnetworks of the front on, with the parent as the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nas.exports.export import save_model
from nas.fronts.front import ParetoFront
from nas.fronts.point import Point
from nas.recipe.objectives import COSTS, format_value
from nas.recipe.schema import Recipe
from nas.runs.files import write_json
from nas.runs.progress import print_line, progress
from nas.runs.run import Run
from nas.studies.study import evaluated_points, open_studies
from nas.supernets.load import load_supernet
from nas.supernets.supernet import Supernet
from nas.supernets.training import model_trainer, train
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from predictors import AnalyticCosts

SPEEDUPS = (2.0, 3.0, 5.0, 8.0, 1.5)
"""Parts of the parent's cost at which subnetworks are chosen, in this order: a half, a third, a fifth."""


def run_finish(run: Run, context: TaskContext, cluster: str | None = None) -> None:
    """Trains the chosen subnetworks of the search's front on and stores each as a model folder in ``run.finished``.

    Weights of a supernet are a compromise between all subnetworks; a short distillation of one of them alone recovers
    what the compromise costs (Cai et al. 2020, arXiv 1908.09791, fine-tune the specialized subnetworks likewise). The
    choice uses predicted latencies and the search split only, never the held-out split.

    Args:
        run: The run, with its studies.
        context: The context of its recipe.
        cluster: Not used; one subnetwork is trained at a time, in this process.
    """
    supernet, _ = load_supernet(run, context)
    study = open_studies(run.study, context.recipe)["search"]
    front = ParetoFront.of(evaluated_points(study), context.recipe.objectives)
    cost = next(name for name in context.recipe.objectives if name in COSTS)
    points = choose_points(front.points, context.recipe, cost, _parent_cost(run, context, supernet, cost))
    for number, point in enumerate(points, 1):
        if not (run.finished / point.key).exists():
            with run.building(run.finished / point.key) as work:
                _finish_point(run, context, supernet, point, work, f"finish {number} of {len(points)}")
    run.finished.mkdir(exist_ok=True)
    write_json(run.finished / "chosen.json", [point.key for point in points])


def choose_points(points: Sequence[Point], recipe: Recipe, cost: str, parent_cost: float) -> list[Point]:
    """The points of a front that are trained on.

    If the cost has an upper bound, the best point within it comes first. Then the best point at a half, a third and a
    fifth of the parent's cost follow. Points that are left fill the number, the cheapest last.

    Args:
        points: The front of the search.
        recipe: Its objectives, constraints and ``finish.models``.
        cost: The cost that the points are chosen along.
        parent_cost: Of the parent.
    """
    bound, metric = recipe.bounds.get(cost), recipe.primary_metric
    sign = 1.0 if recipe.objectives[metric] == "maximize" else -1.0
    limit = bound.value if bound is not None and bound.op.startswith("<") else float("inf")
    budgets = [*([limit] if limit < float("inf") else []), *(parent_cost / speedup for speedup in SPEEDUPS)]
    by_quality = sorted(points, key=lambda point: -sign * point.values[metric])
    chosen: dict[str, Point] = {}
    for budget in [*budgets, *([float("inf")] * len(points))]:
        affordable = [p for p in by_quality if p.values[cost] <= min(budget, limit) and p.key not in chosen]
        if affordable and len(chosen) < recipe.finish.models:
            chosen[affordable[0].key] = affordable[0]
    return list(chosen.values())


def _parent_cost(run: Run, context: TaskContext, supernet: Supernet, cost: str) -> float:
    """The parent's cost; a latency is predicted, as those of the front are."""
    if cost == "latency_ms":
        return float(run.load_predictor().predict([supernet.parent])[0])
    counts = AnalyticCosts.from_model(supernet.model, supernet.layout, context.recipe.task.type)
    return float(counts.count([cost], [supernet.parent], context.recipe.workload)[cost][0])


def _finish_point(run: Run, context: TaskContext, supernet: Supernet, point: Point, work: Path, title: str) -> None:
    """Trains one subnetwork and writes its model folder, with its metric on the search split before and after."""
    settings, metric = context.recipe.finish, context.recipe.primary_metric
    model = supernet.extract(point.subnet)
    model.requires_grad_(True)
    before = score(model, context.splits.search, [metric])[metric]
    trainer = model_trainer(
        model,
        settings,
        work / "checkpoints",
        context.training_set(settings),
        context.splits.task,
        context.recipe.seed,
        teacher=context.load_model(run.parent),
    )
    with progress(title) as report:
        log = train(trainer, report, run.logs / f"finish-{point.key}")
    model.eval()
    after = score(model, context.splits.search, [metric])[metric]
    save_model(model, context, work)
    context.save_processor(work, point.subnet)
    write_json(work / "training.json", log)
    values = " -> ".join(format_value(metric, one.value, one.standard_error) for one in (before, after))
    print_line(f"finished   {point.key}: {metric} {values} on the search split")

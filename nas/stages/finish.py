"""The finish stage: trains the chosen subnetworks of the front on, with the parent as the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from nas.exports.export import save_model
from nas.fronts.point import Point
from nas.recipe.objectives import format_value
from nas.recipe.schema import Finish, Recipe
from nas.runs.files import delete, read_json, write_json
from nas.runs.finished import Finished, read_finished_before, write_finished
from nas.runs.parent_values import read_parent_values
from nas.runs.progress import print_line, progress
from nas.runs.run import Run
from nas.stages.by_hand import cost_objectives, layer_drop, predicted_cost
from nas.stages.training import shared_outputs
from nas.studies.near_ties import offered_front
from nas.studies.study import open_studies
from nas.supernets.hidden_states import StateMatching
from nas.supernets.int8_twin import int8_pays, int8_twin, with_int8
from nas.supernets.load import load_ordered_parent, load_supernet, save_calibration
from nas.supernets.rounded_training import trainable, with_stored_weights
from nas.supernets.strategies import Chosen
from nas.supernets.supernet import Supernet
from nas.supernets.supernet_trainer import SupernetTrainer
from nas.supernets.training import model_trainer, train, training_arguments
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from nas.tasks.kept_outputs import KeptStates
from search_spaces import SubnetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPEEDUPS = (2.0, 3.0, 5.0, 8.0, 1.5)
"""Parts of the parent's cost, or of a bound below them, at which subnetworks are chosen: a half, a third, a fifth."""
HIDDEN_STATES_WEIGHT = 10.0
"""Weight of the loss on hidden states: of 1, 10 and 30 the best on pretrained models (experiments/bench)."""
TOGETHER = "together"
TOGETHER_SHARE = 0.6
"""Share of the training in which the chosen subnetworks still share their weights."""


def run_finish(run: Run, context: TaskContext, cluster: str | None = None) -> None:
    """Trains the chosen subnetworks of the search's front on and stores each as a model folder in ``run.finished``.

    Weights of a supernet are a compromise between all subnetworks. First the chosen ones share them, one trained in
    each step: what they have in common is learned once. Then each is trained alone (Cai et al. 2020, arXiv 1908.09791,
    fine-tune the specialized subnetworks likewise). The choice uses predicted latencies and the search split only,
    never the held-out split. Each finished model, and the parent, gets a twin with int8 layers where that pays.
    Models that were finished before the run went on stay.

    Args:
        run: The run, with its studies.
        context: The context of its recipe.
        cluster: Not used; one subnetwork is trained at a time, in this process.
    """
    with context.training() if context.recipe.finish.models else nullcontext():
        _finish(run, context)


def _finish(run: Run, context: TaskContext) -> None:
    """See `run_finish`."""
    supernet, space = load_supernet(run, context)
    study = open_studies(run.study, context.recipe)["search"]
    front = offered_front(run, study, context.recipe, space)
    costs = {
        cost: predicted_cost(run, context, supernet, cost, supernet.parent) for cost in cost_objectives(context.recipe)
    }
    parent = Point(supernet.parent, costs)
    points = choose_points(front.points, context.recipe.with_parent(read_parent_values(run)), parent)
    models = [Finished(point.subnet, "search") for point in points]
    _finish_all(run, context, supernet, models)
    models += _baselines(run, context, supernet, models)
    models += _int8_twins(run, context, supernet, models)
    delete(run.finished / TOGETHER)
    delete(run.teacher_outputs)
    keys = {model.subnet.key for model in models}
    write_finished(run, [*models, *(before for before in read_finished_before(run) if before.subnet.key not in keys)])


def choose_points(points: Sequence[Point], recipe: Recipe, parent: Point) -> list[Point]:
    """The points of a front that are trained on, chosen along each cost in turn, such as the latency of each workload.

    If a cost has an upper bound, the best point within it comes first. Then the best point at a half, a third and a
    fifth of the parent's cost follow, or of the bound where all of these exceed it, and the cheapest. Points that are
    left fill the number, the best first. The parent itself is chosen only if the front has no other.

    Args:
        points: The front of the search.
        recipe: Its objectives, constraints and ``finish.models``.
        parent: The parent, with its costs among the objectives.
    """
    others = [point for point in points if point.key != parent.key] or points
    along = [_along(others, recipe, cost, parent_cost) for cost, parent_cost in parent.values.items()]
    in_turn = {point.key: point for picks in zip_longest(*along) for point in picks if point is not None}
    return list(in_turn.values())[: recipe.finish.models]


def _along(points: Sequence[Point], recipe: Recipe, cost: str, parent_cost: float) -> list[Point]:
    """The points within the bound of a cost in the order in which they are chosen along it (see `choose_points`)."""
    bound, metric = recipe.bounds.get(cost), recipe.primary_metric
    sign = 1.0 if recipe.objectives[metric] == "maximize" else -1.0
    limit = float("inf") if bound is None else bound.upper
    whole = limit if parent_cost / max(SPEEDUPS) > limit else parent_cost
    budgets = [*([limit] if limit < float("inf") else []), *(whole / speedup for speedup in SPEEDUPS)]
    budgets += [min((point.values[cost] for point in points), default=0.0), *([float("inf")] * len(points))]
    by_quality = sorted(points, key=lambda point: -sign * point.values[metric])
    chosen: dict[str, Point] = {}
    for budget in budgets:
        affordable = [p for p in by_quality if p.values[cost] <= min(budget, limit) and p.key not in chosen]
        if affordable:
            chosen[affordable[0].key] = affordable[0]
    return list(chosen.values())


def _part(settings: Finish, share: float, models: int) -> Finish:
    """The settings of a part of the training: a share of the time, or of the epochs of so many models."""
    minutes = None if settings.minutes is None else share * settings.minutes
    return settings.model_copy(update={"minutes": minutes, "epochs": share * models * settings.num_train_epochs})


def _finish_all(run: Run, context: TaskContext, supernet: Supernet, models: Sequence[Finished]) -> None:
    """Trains the subnetworks that are not finished yet together, then each alone."""
    missing = [model for model in models if not model.folder(run).exists()]
    if not missing:
        return
    settings, share, shared_s = context.recipe.finish, 0.0, 0.0
    teacher = _teacher(run, context, supernet, missing)
    if len(missing) > 1 or (run.finished / TOGETHER).exists():
        supernet, share = _train_together(run, context, supernet, teacher, missing, len(models)), TOGETHER_SHARE
        shared_s = _seconds(run.finished / TOGETHER) / _number(run.finished / TOGETHER)
    for number, model in enumerate(missing, 1):
        alone = _part(settings, (1 - share) / len(models), len(models))
        title = f"finish {number} of {len(missing)}"
        _train_alone(run, context, supernet, teacher, model, alone, title, shared_s)


@dataclass(frozen=True)
class _Teacher:
    """The parent in the order of the supernet, and what its students' hidden states are compared with."""

    model: PreTrainedModel
    states: StateMatching | None


def _teacher(run: Run, context: TaskContext, supernet: Supernet, students: Sequence[Finished]) -> _Teacher:
    settings, model = context.recipe.finish, load_ordered_parent(run, context)[0].model
    weight = settings.hidden_states
    if weight is None:  # a parent that was trained from scratch for as long as its subnetworks knows no more than they
        weight = 0.0 if context.has_no_weights else HIDDEN_STATES_WEIGHT
    if not weight or supernet.family.has_towers or supernet.family.has_queries:  # they read other tokens
        return _Teacher(model, None)
    kept = KeptStates() if settings.augment is None else None
    subnets = [student.subnet for student in students]
    return _Teacher(model, StateMatching(weight, supernet.layout, subnets, kept))


def _train_together(
    run: Run,
    context: TaskContext,
    supernet: Supernet,
    teacher: _Teacher,
    models: Sequence[Finished],
    n_chosen: int,
) -> Supernet:
    """A supernet of these subnetworks only: every step trains one of them; the time is their part of all chosen."""
    target, share = run.finished / TOGETHER, TOGETHER_SHARE * len(models) / n_chosen
    settings = _part(context.recipe.finish, share, n_chosen)
    if not target.exists():
        with run.building(target) as work:
            examples = context.training_set(settings)
            arguments = training_arguments(settings, work / "checkpoints", context.recipe.seed, _has_text(examples))
            trainer = SupernetTrainer(
                supernet=supernet,
                task=context.splits.task,
                teacher=teacher.model,
                states=teacher.states,
                strategy=Chosen([model.subnet for model in models]),
                temperature=settings.temperature,
                kept=shared_outputs(run, context, settings),
                args=arguments,
                train_dataset=examples,
                other_sizes=context.of_sizes((model.subnet.input_size for model in models), settings),
            )
            with progress("finish together") as report:
                log = train(trainer, report, run.logs / "finish", settings.minutes)
            save_calibration(supernet, context, work)
            supernet.model.save_pretrained(work)
            write_json(work / "training.json", [*log, {"models": float(len(models))}])
    return load_supernet(run, context, target)[0]


def _train_alone(
    run: Run,
    context: TaskContext,
    supernet: Supernet,
    teacher: _Teacher,
    finished: Finished,
    settings: Finish,
    title: str,
    shared_s: float = 0.0,
) -> None:
    """Trains one subnetwork of a supernet and writes its folder; says its metric on the search split before and after.

    Layers in fewer bits are rounded in every step (see `nas.supernets.rounded_training`).
    Its log also has ``shared_s``, its share of the seconds in which several were trained together.
    """
    metric, key = context.recipe.primary_metric, finished.subnet.key
    with run.building(finished.folder(run)) as work:
        model = trainable(supernet, finished.subnet).requires_grad_(True)
        own, size = context.of(finished.subnet), finished.subnet.input_size
        before = score(model, own.splits.search, [metric])[metric]
        trainer = model_trainer(
            model,
            settings,
            work / "checkpoints",
            context.training_set(settings),
            context.splits.task,
            context.recipe.seed,
            teacher=teacher.model,
            states=teacher.states,
            layers=finished.subnet.layers,
            temperature=settings.temperature,
            kept=shared_outputs(run, context, settings),
            other_sizes=context.of_sizes([size], settings),
            input_size=size,
        )
        with progress(title) as report:
            log = train(trainer, report, run.logs / f"finish-{key}", settings.minutes)
        model = with_stored_weights(model, supernet, finished.subnet).eval()
        after = score(model, own.splits.search, [metric])[metric]
        _save(model, finished.subnet, context, work)
        write_json(work / "training.json", [*log, {"train_runtime": shared_s}])
    values = " -> ".join(format_value(metric, one.value, one.standard_error) for one in (before, after))
    print_line(f"finished   {key}: {metric} {values} on the search split")


def _save(model: PreTrainedModel, subnet: SubnetConfig, context: TaskContext, folder: Path) -> None:
    save_model(model, context, folder)
    context.save_processor(folder, subnet)


def _has_text(examples: object) -> bool:
    return "input_ids" in getattr(examples, "column_names", ())


def _baselines(run: Run, context: TaskContext, supernet: Supernet, models: Sequence[Finished]) -> list[Finished]:
    """The baselines of the recipe that are trained: as long as each finished model, from the parent."""
    wanted = "layer-drop" in context.recipe.baselines and models
    dropped = layer_drop(run, context, supernet, models[0].subnet) if wanted else None
    if dropped is None:
        return []
    baseline = Finished(dropped, "layer-drop")
    if not baseline.folder(run).exists():
        teacher, parent = _teacher(run, context, supernet, [baseline]), load_ordered_parent(run, context)[0]
        settings = context.recipe.finish.model_copy(update={"minutes": _minutes_each(run, models)})
        _train_alone(run, context, parent, teacher, baseline, settings, "finish layer-drop")
    return [baseline]


def _minutes_each(run: Run, models: Sequence[Finished]) -> float:
    """Minutes of training that a finished model took, with its share of the supernet's."""
    folders = [run.supernet, *(model.folder(run) for model in models)]
    return sum(map(_seconds, folders)) / 60 / len(models)


def _seconds(folder: Path) -> float:
    """Seconds of the training of a stored model."""
    return float(read_json(folder / "training.json", folder, _runtime))


def _number(folder: Path) -> int:
    """How many subnetworks a stored supernet of chosen ones was trained for."""
    return int(read_json(folder / "training.json", folder, lambda log: log[-1]["models"]))


def _runtime(log: Sequence[Mapping[str, float]]) -> float:
    return sum(entry.get("train_runtime", 0.0) for entry in log)


def _int8_twins(run: Run, context: TaskContext, supernet: Supernet, models: Sequence[Finished]) -> list[Finished]:
    """The parent and the finished models with int8 layers, where that pays; their latency must be measured here."""
    twins: dict[SubnetConfig, Finished] = {}
    sources = {supernet.parent: run.parent, **{model.subnet: model.folder(run) for model in models}}
    for subnet, folder in sources.items() if int8_pays(run, context) else ():
        twin = Finished(with_int8(subnet), "parent-int8" if folder == run.parent else "int8")
        if twin.subnet not in sources:
            twins[twin.subnet] = twin
            if not twin.folder(run).exists():
                with run.building(twin.folder(run)) as work:
                    model = int8_twin(context.load_model(folder).eval(), subnet, supernet)
                    _save(model, subnet, context, work)
    return list(twins.values())

"""The supernet stage: orders layers, heads, neurons and channels by importance, then trains all subnetworks.

Without a training (``supernet.strategy: none``), slices of the parent compensate what they leave out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nas.recipe.schema import SupernetTraining
from nas.runs import processes
from nas.runs.files import delete, partial_path, write_json
from nas.runs.processes import build_in_main
from nas.runs.progress import ProgressCallback, print_line
from nas.runs.run import Run
from nas.stages.profile import fit_predictor
from nas.stages.training import run_training, save_trained, shared_outputs
from nas.supernets.device import training_device
from nas.supernets.importance import order_by_importance
from nas.supernets.load import (
    CALIBRATION_EXAMPLES,
    ORDER,
    calibration_set,
    load_ordered_parent,
    save_calibration,
    vocabulary_of,
)
from nas.supernets.space import input_sizes, search_space
from nas.supernets.strategies import STRATEGIES, SUBNET_SAMPLERS, CostFunction, Strategy, stratified_sampler
from nas.supernets.supernet import Supernet
from nas.supernets.supernet_trainer import SupernetTrainer
from nas.supernets.training import train, training_arguments
from nas.tasks.context import TaskContext
from predictors import AnalyticCosts
from search_spaces import InputError, SearchSpace

LAYER_EXAMPLES = 128
"""Examples on which layers are ordered; fewer than for heads and neurons, as this takes up to 2 L passes."""


def run_supernet(run: Run, context: TaskContext, cluster: str | None = None) -> None:
    """Orders the parent's weights by importance, trains all subnetworks together and saves ``run.supernet``.

    Args:
        run: The run, with its parent.
        context: The context of its recipe.
        cluster: Address of a Ray cluster, which trains if the recipe sets ``supernet.workers``.

    Raises:
        InputError: If the recipe asks for more processes than there are, and there is no cluster; or if it samples by
            latencies that another device measures after the training.
    """
    with build_in_main(run, run.supernet) as work:
        if processes.is_main():
            _order_and_profile(run, context, work)
        processes.barrier()
        if context.recipe.supernet.is_trained:
            run_training(train_supernet, "supernet", run, context, cluster)
    made = "trained" if context.recipe.supernet.is_trained else "not trained, slices compensate"
    print_line(f"supernet   {made}: {run.supernet}; {_order_line(context.recipe.supernet, run.layer_order)}")


def _order_line(settings: SupernetTraining, layers: Sequence[int]) -> str:
    if settings.order == "none":
        return "layers in their original order"
    return f"layers by importance, most important first: {', '.join(map(str, layers))}"


def _order_and_profile(run: Run, context: TaskContext, work: Path) -> None:
    """Saves the order of importance and, if subnetworks are sampled by latency, the latency predictor.

    Without a training, this is the supernet: its weights in that order are saved too.

    Raises:
        InputError: If subnetworks are sampled by latency, but another device measures it after the training.
    """
    settings = context.recipe.supernet
    samples_by_latency = settings.is_trained and settings.sampler == "latency_ms"
    if samples_by_latency and run.target.is_remote:
        raise InputError(
            f"`supernet.sampler` must not be `latency_ms`, as another device measures latencies of `{run.folder}` "
            "after the training; choose `macs`."
        )
    if not (work / ORDER).exists():
        delete(work / "checkpoints")
        supernet = Supernet(context.load_model(run.parent)).to(training_device())
        examples = calibration_set(context)
        order = order_by_importance(
            supernet,
            examples.labelled_batches(CALIBRATION_EXAMPLES),
            examples.labelled_batches(LAYER_EXAMPLES),
            by=settings.order,
            task=context.splits.task,
            fewest=search_space(context).fewest_layers,
        )
        save_calibration(supernet, context, work)
        if (vocabulary := vocabulary_of(context)) is not None:
            vocabulary.save(work)
        if not settings.is_trained:
            save_trained(supernet.model, [], work)
        write_json(work / ORDER, order.to_dict())
    if samples_by_latency and not run.target.has_predictor:
        fit_predictor(run.target, context, *supernet_before_training(run, context))


def supernet_before_training(run: Run, context: TaskContext) -> tuple[Supernet, SearchSpace]:
    """The parent as a supernet in the saved order of importance, and its space with the layers in that order."""
    supernet, order = load_ordered_parent(run, context, partial_path(run.supernet))
    return supernet, search_space(context, order.layers)


def train_supernet(run: Run, context: TaskContext, report: ProgressCallback) -> None:
    """Trains the supernet in the order saved by `_order_and_profile`; saves it in the work folder of the stage."""
    work, settings = partial_path(run.supernet), context.recipe.supernet
    supernet, space = supernet_before_training(run, context)
    latency_ms = run.target.load_predictor().predict if settings.sampler == "latency_ms" else None
    examples, checkpoints = context.training_set(settings), work / "checkpoints"
    trainer = SupernetTrainer(
        supernet=supernet,
        task=context.splits.task,
        teacher=context.load_model(run.parent) if settings.teacher == "parent" else None,
        strategy=make_strategy(settings, supernet, space, latency_ms, context.recipe.task.type),
        temperature=settings.temperature,
        kept=shared_outputs(run, context, settings),
        args=training_arguments(settings, checkpoints, context.recipe.seed, "input_ids" in examples.column_names),
        train_dataset=examples,
        other_sizes=context.of_sizes(input_sizes(space), settings),
    )
    log = train(trainer, report, run.logs / "supernet", settings.minutes)
    if processes.is_main():
        save_calibration(supernet, context, work)
    save_trained(supernet.model, log, work)


def make_strategy(
    settings: SupernetTraining,
    supernet: Supernet,
    space: SearchSpace,
    latency_ms: CostFunction | None = None,
    task: str | None = None,
) -> Strategy:
    """The training strategy of a recipe: which subnetworks are trained in a step.

    Args:
        settings: The section of the recipe.
        supernet: The supernet.
        space: Its space.
        latency_ms: Predicts latencies, for ``sampler: latency_ms``.
        task: The model's task; default: the first one of its family.
    """
    if settings.sampler in SUBNET_SAMPLERS:
        sample = SUBNET_SAMPLERS[settings.sampler](space)
    else:
        sample = stratified_sampler(space, latency_ms or _exact_cost(settings.sampler, supernet, task))
    return STRATEGIES[settings.strategy](space, sample, settings.sampled_subnets)


def _exact_cost(name: str, supernet: Supernet, task: str | None) -> CostFunction:
    counts = AnalyticCosts.from_model(supernet.model, supernet.layout, task, supernet.dtype)
    return lambda subnets: counts.count([name], subnets)[name]

"""The supernet stage: puts layers, heads, neurons and channels in order of importance, then trains all subnetworks."""

from __future__ import annotations

from pathlib import Path

from nas.recipe.schema import SupernetTraining
from nas.runs import processes
from nas.runs.files import delete, partial_path, read_json, write_json
from nas.runs.processes import build_in_main, exists_for_all
from nas.runs.progress import ProgressCallback, print_line
from nas.runs.run import Run
from nas.stages.profile import run_profile
from nas.stages.training import run_training, save_trained
from nas.supernets.importance import ImportanceOrder, order_by_importance, permute
from nas.supernets.load import CALIBRATION_EXAMPLES, calibration_set, save_calibration
from nas.supernets.low_rank import CalibrationStatistics
from nas.supernets.space import search_space
from nas.supernets.strategies import STRATEGIES, SUBNET_SAMPLERS, CostFunction, Strategy, stratified_sampler
from nas.supernets.supernet import Supernet
from nas.supernets.supernet_trainer import SupernetTrainer
from nas.supernets.training import train, training_arguments, training_device
from nas.tasks.context import TaskContext
from predictors import AnalyticCosts
from search_spaces import InputError, SearchSpace

LAYER_EXAMPLES = 128
"""Examples to order layers on, fewer than for heads and neurons: this takes about L*L/2 passes, not one."""
ORDER = "importance.json"


def run_supernet(run: Run, context: TaskContext, cluster: str | None = None) -> None:
    """Orders the parent's weights by importance and trains all subnetworks of the space together.

    Args:
        run: Keeps it.
        context: Of its recipe.
        cluster: Address of the Ray cluster that trains where ``supernet.workers`` are asked for.
    """
    if exists_for_all(run.supernet):
        return
    with build_in_main(run, run.supernet) as work:
        if processes.is_main():
            _order_and_profile(run, context, work)
        processes.barrier()
        run_training(train_supernet, "supernet", run, context, cluster)
    ordered = "as they stand" if context.recipe.supernet.order == "none" else "by importance"
    print_line(f"supernet   {run.supernet}: layers {ordered} {run.layer_order}")


def _order_and_profile(run: Run, context: TaskContext, work: Path) -> None:
    """Stores the order of importance and, where subnetworks are sampled by it, the latency predictor.

    Raises:
        InputError: If they are to be sampled by latencies that another device measures after the training.
    """
    if context.recipe.supernet.sampler == "latency_ms" and run.is_remote:
        raise InputError(
            f"`{run.folder}` takes its latencies from another device once the supernet is trained, but "
            "`supernet.sampler` is `latency_ms`; choose `macs`."
        )
    if not (work / ORDER).exists():
        delete(work / "checkpoints")
        supernet, examples = Supernet(context.load_model(run.parent).to(training_device())), calibration_set(context)
        order = order_by_importance(
            supernet,
            examples.labelled_batches(CALIBRATION_EXAMPLES),
            examples.labelled_batches(LAYER_EXAMPLES),
            by=context.recipe.supernet.order,
        )
        save_calibration(supernet, context, work)
        write_json(work / ORDER, order.to_dict())
    if context.recipe.supernet.sampler == "latency_ms":
        run_profile(run, context, supernet_before_training)


def supernet_before_training(run: Run, context: TaskContext) -> tuple[Supernet, SearchSpace]:
    """The parent as a supernet in the stored order of importance, and its space with the layers in that order."""
    work = partial_path(run.supernet)
    order = ImportanceOrder.from_dict(read_json(work / ORDER))
    supernet = Supernet(context.load_model(run.parent).to(training_device()))
    permute(supernet, order.units, order.hidden)
    supernet.calibration = CalibrationStatistics.load(work)
    return supernet, search_space(context, order.layers)


def train_supernet(run: Run, context: TaskContext, report: ProgressCallback) -> None:
    """Trains the supernet from what `_order_and_profile` stored, and stores it where it is built."""
    work, settings = partial_path(run.supernet), context.recipe.supernet
    supernet, space = supernet_before_training(run, context)
    profiled = run_profile(run, context).predict if settings.sampler == "latency_ms" else None
    examples, checkpoints = context.training_set(settings), work / "checkpoints"
    trainer = SupernetTrainer(
        supernet=supernet,
        task=context.splits.task,
        teacher=context.load_model(run.parent) if settings.teacher == "parent" else None,
        strategy=make_strategy(settings, supernet, space, profiled),
        temperature=settings.temperature,
        relation_weight=settings.relations,
        relation_source=settings.relations_of,
        args=training_arguments(settings, checkpoints, context.recipe.seed, "input_ids" in examples.column_names),
        train_dataset=examples,
    )
    log = train(trainer, report, run.logs / "supernet")
    if processes.is_main():
        save_calibration(supernet, context, work)
    save_trained(supernet.model, log, work)


def make_strategy(
    settings: SupernetTraining, supernet: Supernet, space: SearchSpace, latency_ms: CostFunction | None = None
) -> Strategy:
    """What a recipe's section says of which subnetworks learn in a step; ``latency_ms`` predicts what they take."""
    if settings.sampler in SUBNET_SAMPLERS:
        sample = SUBNET_SAMPLERS[settings.sampler](space)
    else:
        sample = stratified_sampler(space, latency_ms or _exact_cost(settings.sampler, supernet))
    return STRATEGIES[settings.strategy](space, sample, settings.sampled_subnets)


def _exact_cost(name: str, supernet: Supernet) -> CostFunction:
    """An exact cost of subnetworks."""
    counts = AnalyticCosts.from_model(supernet.model, supernet.layout)
    return lambda subnets: counts.count([name], subnets)[name]

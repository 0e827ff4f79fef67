"""The supernet stage: puts layers, heads, neurons and channels in order of importance, then trains all subnetworks."""

from __future__ import annotations

from pathlib import Path

from nas.recipe.schema import SupernetTraining
from nas.runs import processes
from nas.runs.files import partial_of, read_json, remove, write_json
from nas.runs.processes import build_in_main, exists_for_all
from nas.runs.progress import Report, say
from nas.runs.run import Run
from nas.stages.profile import make_profile
from nas.stages.training import run_training, store_model
from nas.supernets.importance import ImportanceOrder, order_by_importance, permute
from nas.supernets.load import CALIBRATION_EXAMPLES, calibration_set, store_activations
from nas.supernets.low_rank import Activations
from nas.supernets.space import search_space
from nas.supernets.strategies import SAMPLES, STRATEGIES, Cost, Strategy, stratified
from nas.supernets.supernet import Supernet
from nas.supernets.supernet_trainer import SupernetTrainer
from nas.supernets.training import train, training_arguments, training_device
from nas.tasks.context import TaskContext
from predictors import AnalyticCosts
from search_spaces import InputError, SearchSpace

LAYER_EXAMPLES = 128
"""Examples to order layers on, fewer than for heads and neurons: this takes about L*L/2 passes, not one."""
ORDER = "importance.json"


def make_supernet(run: Run, context: TaskContext, cluster: str | None = None) -> None:
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
            _prepare(run, context, work)
        processes.wait()
        run_training(train_supernet, "supernet", run, context, cluster)
    ordered = "as they stand" if context.recipe.supernet.order == "none" else "by importance"
    say(f"supernet   {run.supernet}: layers {ordered} {run.layer_order}")


def _prepare(run: Run, context: TaskContext, work: Path) -> None:
    """Stores the order of importance and, where subnetworks are sampled by it, the latency predictor.

    Raises:
        InputError: If they are to be sampled by latencies that another device measures after the training.
    """
    if context.recipe.supernet.sampler == "latency_ms" and run.elsewhere:
        raise InputError(
            f"`{run.folder}` takes its latencies from another device once the supernet is trained, but "
            "`supernet.sampler` is `latency_ms`; choose `macs`."
        )
    if not (work / ORDER).exists():
        remove(work / "checkpoints")
        supernet, examples = Supernet(context.load_model(run.parent).to(training_device())), calibration_set(context)
        order = order_by_importance(
            supernet,
            examples.labelled_batches(CALIBRATION_EXAMPLES),
            examples.labelled_batches(LAYER_EXAMPLES),
            by=context.recipe.supernet.order,
        )
        store_activations(supernet, context, work)
        write_json(work / ORDER, order.to_dict())
    if context.recipe.supernet.sampler == "latency_ms":
        make_profile(run, context, ordered_supernet)


def ordered_supernet(run: Run, context: TaskContext) -> tuple[Supernet, SearchSpace]:
    """The parent as a supernet in the stored order of importance, and its space with the layers in that order."""
    work = partial_of(run.supernet)
    order = ImportanceOrder.from_dict(read_json(work / ORDER))
    supernet = Supernet(context.load_model(run.parent).to(training_device()))
    permute(supernet, order.units, order.hidden)
    supernet.activations = Activations.load(work)
    return supernet, search_space(context, order.layers)


def train_supernet(run: Run, context: TaskContext, report: Report) -> None:
    """Trains the supernet from what `_prepare` stored, and stores it where it is built."""
    work, settings = partial_of(run.supernet), context.recipe.supernet
    supernet, space = ordered_supernet(run, context)
    profiled = make_profile(run, context).predict if settings.sampler == "latency_ms" else None
    examples, checkpoints = context.training_set(settings), work / "checkpoints"
    trainer = SupernetTrainer(
        supernet=supernet,
        task=context.splits.task,
        teacher=context.load_model(run.parent) if settings.teacher == "parent" else None,
        strategy=strategy_of(settings, supernet, space, profiled),
        temperature=settings.temperature,
        relations=settings.relations,
        relations_of=settings.relations_of,
        args=training_arguments(settings, checkpoints, context.recipe.seed, "input_ids" in examples.column_names),
        train_dataset=examples,
    )
    log = train(trainer, report, run.logs / "supernet")
    if processes.is_main():
        store_activations(supernet, context, work)
    store_model(supernet.model, log, work)


def strategy_of(
    settings: SupernetTraining, supernet: Supernet, space: SearchSpace, latency_ms: Cost | None = None
) -> Strategy:
    """What a recipe's section says of which subnetworks learn in a step; ``latency_ms`` predicts what they take."""
    if settings.sampler in SAMPLES:
        sample = SAMPLES[settings.sampler](space)
    else:
        sample = stratified(space, latency_ms or _counted(settings.sampler, supernet))
    return STRATEGIES[settings.strategy](space, sample, settings.sampled_subnets)


def _counted(name: str, supernet: Supernet) -> Cost:
    """An exact cost of subnetworks."""
    counts = AnalyticCosts.of(supernet.model, supernet.layout)
    return lambda subnets: counts.count([name], subnets)[name]

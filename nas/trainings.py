"""The trained stages, parent and supernet: each is skipped once it is there, and may train in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas import processes
from nas.config import SupernetTraining
from nas.progress import progress, say
from nas.run import Run, partial_of, read_json, remove, write_json
from nas.stages import CALIBRATION_EXAMPLES, calibration_set, make_profile, search_space, store_activations
from nas.supernets.basis import Activations
from nas.supernets.importance import ImportanceOrder, order_by_importance, permute
from nas.supernets.strategies import SAMPLES, STRATEGIES, Cost, Strategy, stratified
from nas.supernets.supernet import Supernet
from nas.supernets.supernet_trainer import SupernetTrainer
from nas.supernets.training import Report, plain_trainer, train, training_arguments, training_device
from nas.tasks.workbench import Workbench
from predictors import AnalyticCosts
from search_spaces import InputError, SearchSpace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYER_EXAMPLES = 128
"""Examples to order layers on, fewer than for heads and neurons: this takes about L*L/2 passes, not one."""
ORDER = "importance.json"


def make_parent(run: Run, bench: Workbench, cluster: str | None = None) -> None:
    """Stores the parent: the recipe's model if it already does the task, else fine-tuned on it.

    Args:
        run: Keeps it.
        bench: Of its recipe.
        cluster: Address of the Ray cluster that trains where ``parent.workers`` are asked for.
    """
    if _is_there(run.parent):
        return
    with _building(run, run.parent) as work:
        if bench.trains_parent:
            _trained("parent", run, bench, cluster)
        elif processes.is_main():
            _store(bench.load_model(), [], work)
        if processes.is_main():
            bench.processor.save_pretrained(work)
    say(f"parent     {'fine-tuned' if bench.trains_parent else 'as it came'}: {run.parent}")


def make_supernet(run: Run, bench: Workbench, cluster: str | None = None) -> None:
    """Orders the parent's weights by importance and trains all subnetworks of the space together.

    Args:
        run: Keeps it.
        bench: Of its recipe.
        cluster: Address of the Ray cluster that trains where ``supernet.workers`` are asked for.
    """
    if _is_there(run.supernet):
        return
    with _building(run, run.supernet) as work:
        if processes.is_main():
            _prepare(run, bench, work)
        processes.wait()
        _trained("supernet", run, bench, cluster)
    ordered = "as they stand" if bench.recipe.supernet.order == "none" else "by importance"
    say(f"supernet   {run.supernet}: layers {ordered} {run.layer_order}")


# -- in several processes ---------------------------------------------------------------------------------------------


def _is_there(target: Path) -> bool:
    """Whether a stage has its result; all processes get the same answer."""
    found = target.exists()
    processes.wait()
    return found


@contextmanager
def _building(run: Run, target: Path) -> Iterator[Path]:
    """`Run.building` in the main process; the others see the same folder, and leave with it."""
    if processes.is_main():
        with run.building(target) as work:
            yield work
    else:
        yield partial_of(target)
    processes.wait()


def _trained(name: str, run: Run, bench: Workbench, cluster: str | None) -> None:
    """Runs a training in the processes there are, or on the workers of a Ray cluster.

    Raises:
        InputError: If the recipe asks for other processes than there are, and there is no cluster.
    """
    here, settings = processes.count(), getattr(bench.recipe, name)
    with progress(name) as report:
        if settings.workers in (None, here):
            TRAININGS[name](run, bench, report)
        elif cluster is not None and here == 1:
            from nas.engine.ray_training import train_on_ray

            train_on_ray(cluster, name, run, settings, report)
        else:
            raise InputError(
                f"`{name}.workers` is {settings.workers}, but there {'is 1 process' if here == 1 else f'are {here}'}; "
                f"add --ray, or start as many with `torchrun --nproc-per-node {settings.workers} -m -- nas.cli ...`."
            )


def _store(model: PreTrainedModel, log: list[dict[str, float]], work: Path) -> None:
    """Writes what a training ended with, from the main process."""
    if processes.is_main():
        model.save_pretrained(work)
        write_json(work / "training.json", log)


# -- the parent -------------------------------------------------------------------------------------------------------


def train_parent(run: Run, bench: Workbench, report: Report) -> None:
    """Fine-tunes the recipe's model, and stores it where the parent is built."""
    work, settings, task = partial_of(run.parent), bench.recipe.parent, bench.splits.task
    model, examples = bench.load_model(), bench.training_set(settings)
    trainer = plain_trainer(model, settings, work / "checkpoints", examples, task, bench.recipe.seed)
    _store(model, train(trainer, report, run.logs / "parent"), work)


# -- the supernet -----------------------------------------------------------------------------------------------------


def _prepare(run: Run, bench: Workbench, work: Path) -> None:
    """Stores the order of importance and, where subnetworks are sampled by it, the latency predictor.

    Raises:
        InputError: If they are to be sampled by latencies that another device measures after the training.
    """
    if bench.recipe.supernet.sampler == "latency_ms" and run.elsewhere:
        raise InputError(
            f"`{run.folder}` takes its latencies from another device once the supernet is trained, but "
            "`supernet.sampler` is `latency_ms`; choose `macs`."
        )
    if not (work / ORDER).exists():
        remove(work / "checkpoints")
        supernet, examples = Supernet(bench.load_model(run.parent).to(training_device())), calibration_set(bench)
        order = order_by_importance(
            supernet,
            examples.labelled_batches(CALIBRATION_EXAMPLES),
            examples.labelled_batches(LAYER_EXAMPLES),
            by=bench.recipe.supernet.order,
        )
        store_activations(supernet, bench, work)
        write_json(work / ORDER, order.to_dict())
    if bench.recipe.supernet.sampler == "latency_ms":
        make_profile(run, bench, ordered_supernet)


def ordered_supernet(run: Run, bench: Workbench) -> tuple[Supernet, SearchSpace]:
    """The parent as a supernet in the stored order of importance, and its space with the layers in that order."""
    work = partial_of(run.supernet)
    order = ImportanceOrder.from_dict(read_json(work / ORDER))
    supernet = Supernet(bench.load_model(run.parent).to(training_device()))
    permute(supernet, order.units, order.hidden)
    supernet.activations = Activations.load(work)
    return supernet, search_space(bench, order.layers)


def train_supernet(run: Run, bench: Workbench, report: Report) -> None:
    """Trains the supernet from what `_prepare` stored, and stores it where it is built."""
    work, settings = partial_of(run.supernet), bench.recipe.supernet
    supernet, space = ordered_supernet(run, bench)
    profiled = make_profile(run, bench).predict if settings.sampler == "latency_ms" else None
    examples, checkpoints = bench.training_set(settings), work / "checkpoints"
    trainer = SupernetTrainer(
        supernet=supernet,
        task=bench.splits.task,
        teacher=bench.load_model(run.parent) if settings.teacher == "parent" else None,
        strategy=strategy_of(settings, supernet, space, profiled),
        temperature=settings.temperature,
        relations=settings.relations,
        relations_of=settings.relations_of,
        args=training_arguments(settings, checkpoints, bench.recipe.seed, "input_ids" in examples.column_names),
        train_dataset=examples,
    )
    log = train(trainer, report, run.logs / "supernet")
    if processes.is_main():
        store_activations(supernet, bench, work)
    _store(supernet.model, log, work)


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


TRAININGS: dict[str, Callable[[Run, Workbench, Report], Any]] = {"parent": train_parent, "supernet": train_supernet}
"""Section of a recipe -> the training it describes, run in each of its processes."""

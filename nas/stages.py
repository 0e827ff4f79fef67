"""The stages before the search: parent, supernet, profile. Each is skipped once its result is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from nas.config import SupernetTraining
from nas.progress import progress, say
from nas.run import Run, read_json, remove, write_json
from nas.supernets.basis import Activations, calibrate
from nas.supernets.importance import order_by_importance
from nas.supernets.strategies import SAMPLES, STRATEGIES, Cost, Strategy, stratified
from nas.supernets.supernet import Supernet
from nas.supernets.supernet_trainer import SupernetTrainer
from nas.supernets.training import (
    last_complete_checkpoint,
    plain_trainer,
    train,
    training_arguments,
    training_device,
)
from nas.tasks.evaluation import EvaluationSet
from nas.tasks.workbench import Workbench
from predictors import AnalyticCosts, MeasurementStore, Stage, SubnetPredictor, Timing, measure
from predictors.measure import groups
from predictors.precision import why_not
from predictors.runtimes import prepared
from predictors.timing import ANCHOR, doubts
from search_spaces import InputError, SearchSpace, SubnetConfig
from search_spaces.bits import BITS
from search_spaces.pruning import pruned
from search_spaces.subnet import RANKS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CALIBRATION_EXAMPLES = 512
LAYER_EXAMPLES = 128
"""Examples to order layers on, fewer than for heads and neurons: this takes about L*L/2 passes, not one."""
PRECISION = 0.03
"""Wanted half-width of the confidence interval of a latency over its rounds, relative; repetitions differ by more."""


def search_space(bench: Workbench, layer_order: Sequence[int] | None = None) -> SearchSpace:
    """The recipe's space over its parent, without choices that cannot pay."""
    return bench.layout.search_space(paying(bench)[0], layer_order)


def paying(bench: Workbench) -> tuple[dict[str, Any], list[str]]:
    """The choices of the recipe that can pay on its workload, and why others cannot."""
    workload, figures = bench.recipe.workload, bench.recipe.figures
    tokens = bench.layout.longest_sequence(workload.sequence_length)
    refused = {bits: why for bits in BITS if (why := why_not(bits, workload, figures))}
    return pruned(bench.recipe.space.model_dump(), tokens, refused)


def make_parent(run: Run, bench: Workbench) -> None:
    """Stores the parent: the recipe's model if it already does the task, else fine-tuned on it."""
    if run.parent.exists():
        return
    model = bench.load_model()
    with run.building(run.parent) as work:
        log = []
        if bench.trains_parent:
            settings, task = bench.recipe.parent, bench.splits.task
            examples = bench.training_set(settings)
            trainer = plain_trainer(model, settings, work / "checkpoints", examples, task, bench.recipe.seed)
            with progress("parent") as report:
                log = train(trainer, report)
        model.save_pretrained(work)
        bench.processor.save_pretrained(work)
        write_json(work / "training.json", log)
    say(f"parent     {'fine-tuned' if bench.trains_parent else 'as it came'}: {run.parent}")


def make_supernet(run: Run, bench: Workbench) -> None:
    """Orders the parent's weights by importance and trains all subnetworks of the space together."""
    if run.supernet.exists():
        return
    settings = bench.recipe.supernet
    supernet = Supernet(bench.load_model(run.parent).to(training_device()))
    with run.building(run.supernet) as work:
        space = _ordered(supernet, bench, work)
        examples = bench.training_set(settings)
        profiled = make_profile(run, bench, (supernet, space)).predict if settings.sampler == "latency_ms" else None
        trainer = SupernetTrainer(
            supernet=supernet,
            task=bench.splits.task,
            teacher=bench.load_model(run.parent) if settings.teacher == "parent" else None,
            strategy=strategy_of(settings, supernet, space, profiled),
            temperature=settings.temperature,
            relations=settings.relations,
            relations_of=settings.relations_of,
            args=training_arguments(
                settings, work / "checkpoints", bench.recipe.seed, "input_ids" in examples.column_names
            ),
            train_dataset=examples,
        )
        with progress("supernet") as report:
            log = train(trainer, report)
        supernet.model.save_pretrained(work)
        _calibrate(supernet, bench, work)
        write_json(work / "training.json", log)
    say(f"supernet   {run.supernet}: layers by importance {run.layer_order}")


def _ordered(supernet: Supernet, bench: Workbench, work: Path) -> SearchSpace:
    """Puts the weights in order, unless a checkpoint has them so already. Returns the space in that order."""
    checkpoints, order_file = work / "checkpoints", work / "importance.json"
    if not (order_file.exists() and last_complete_checkpoint(checkpoints)):
        remove(checkpoints)
        examples = calibration_set(bench)
        order = order_by_importance(
            supernet,
            examples.labelled_batches(CALIBRATION_EXAMPLES),
            examples.labelled_batches(LAYER_EXAMPLES),
            by=bench.recipe.supernet.order,
        )
        _calibrate(supernet, bench, work)
        write_json(order_file, order.to_dict())
    supernet.activations = Activations.load(work)
    return search_space(bench, read_json(order_file)["layers"])


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


def calibration_set(bench: Workbench) -> EvaluationSet:
    """A few hundred examples of the training data, to see what matters in the parent."""
    train = bench.splits.train
    return EvaluationSet.of(train.select(range(min(CALIBRATION_EXAMPLES, len(train)))), bench.splits.task, 32)


def _calibrate(supernet: Supernet, bench: Workbench, folder: Path) -> None:
    """Stores what bases of low ranks are made from, where a rank is open."""
    if any(rank in search_space(bench).fields for rank in RANKS):
        calibrate(supernet, calibration_set(bench).batches).save(folder)


def load_supernet(run: Run, bench: Workbench) -> tuple[Supernet, SearchSpace]:
    """The trained supernet of a run on the training device, and its space with the layers in importance order."""
    supernet = Supernet(bench.load_model(run.supernet).to(training_device()), Activations.load(run.supernet))
    supernet.model.eval()
    return supernet, search_space(bench, run.layer_order)


def make_profile(run: Run, bench: Workbench, elastic: tuple[Supernet, SearchSpace] | None = None) -> SubnetPredictor:
    """Measures sampled subnetworks, each extracted, and fits the latency predictor on them.

    Args:
        run: Keeps the measurements and the predictor.
        bench: Of its recipe.
        elastic: A supernet in order of importance and its space; by default the trained one. No latency depends on
            what the weights are.
    """
    recipe = bench.recipe
    if any(run.predictor.glob("*")):
        return SubnetPredictor.load(run.predictor, recipe.workload)
    supernet, space = elastic or load_supernet(run, bench)
    costs = AnalyticCosts.of(supernet.model, supernet.layout)
    subnets = profile_sample(space, recipe.profile.samples, recipe.seed)
    measured = measure_subnets(run, bench, supernet, subnets, "profile")
    macs = [float(costs.macs(subnet, recipe.workload.sequence_length)) for subnet in subnets]
    latency_ms = [measured[subnet.key].latency_ms for subnet in subnets]
    predictor = SubnetPredictor.fit(space, subnets, latency_ms, recipe.workload, macs=macs, seed=recipe.seed)
    with run.building(run.predictor) as work:
        predictor.save(work)
    return predictor


def profile_sample(space: SearchSpace, samples: int, seed: int) -> list[SubnetConfig]:
    """Distinct subnetworks to measure: the corners, then uniform and per-layer ones; all of a small space."""
    rng = Random(f"{seed}/profile")
    found = {subnet.key: subnet for subnet in (space.largest, space.smallest)}
    for _ in range(100 * samples):
        if len(found) >= min(samples, space.size):
            break
        subnet = space.sample_mixed(rng)
        found[subnet.key] = subnet
    return list(found.values())


def measure_subnets(
    run: Run, bench: Workbench, supernet: Supernet, subnets: Sequence[SubnetConfig], stage: Stage
) -> dict[str, Timing]:
    """Latencies of extracted subnetworks by key; those in the run's measurements are not measured again."""
    workload, store = bench.recipe.workload, run.store
    missing = [subnet for subnet in subnets if store.get(subnet.key, workload, stage) is None]
    if missing and run.elsewhere:
        raise InputError(
            f"`{run.folder}` takes its latencies from another device, and {len(missing)} are not here yet; "
            "`nas profile RECIPE --export FOLDER` writes what to measure there, `--import FOLDER` brings it back."
        )
    with progress("profile") as report:
        for start, group in groups(missing):
            models = {subnet.key: supernet.extract(subnet) for subnet in group}
            timed = time_models(bench, supernet, models, store)
            for subnet in group:
                store.add(subnet, workload, stage, timed[subnet.key])
            report(start + len(group), len(missing), "")
    found = {subnet.key: store.get(subnet.key, workload, stage) for subnet in subnets}
    timings = {key: timing for key, timing in found.items() if timing is not None}
    say_doubts(timings if missing else {})
    return timings


def say_doubts(timings: Mapping[str, Timing]) -> None:
    """Says which latencies are not as precise as they were to be; what is derived from them has wider intervals."""
    if said := doubts(timings, PRECISION):
        say(f"noisy      {said}")


def time_models(
    bench: Workbench, supernet: Supernet, models: dict[str, PreTrainedModel], store: MeasurementStore
) -> dict[str, Timing]:
    """Times models beside the parent's architecture as the anchor, all on the scale of the first measurement."""
    workload, inputs = bench.recipe.workload, bench.dummy_inputs(bench.recipe.workload)
    anchor_ms = store.anchor_ms(workload)
    calls = {key: prepared(model, inputs, workload) for key, model in models.items()}
    anchor = prepared(supernet.extract(supernet.parent), inputs, workload)
    timed = measure(calls, anchor, workload, anchor_ms=anchor_ms, precision=PRECISION)
    if anchor_ms is None:
        store.add(supernet.parent, workload, "anchor", timed[ANCHOR])
    return timed

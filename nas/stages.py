"""What a search starts from: its space, the trained supernet, and the latency profile of this device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.earlier import priors, reused
from nas.progress import progress, say
from nas.run import Run
from nas.supernets.basis import Activations, calibrate
from nas.supernets.supernet import Supernet
from nas.supernets.training import training_device
from nas.tasks.evaluation import EvaluationSet
from nas.tasks.workbench import Workbench
from predictors import AnalyticCosts, Ceilings, MeasurementStore, SubnetPredictor, Timing, roofline_ms
from predictors.active import least_sure
from predictors.measure import TOGETHER, groups, measure_in_calm
from predictors.models import features
from predictors.precision import why_not
from predictors.runtimes import prepared
from predictors.timing import ANCHOR, doubts, max_drift
from search_spaces import InputError, SearchSpace, SubnetConfig
from search_spaces.bits import BITS
from search_spaces.pruning import pruned

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CALIBRATION_EXAMPLES = 512
POOL = 512
"""Sampled subnetworks of which some are chosen to be measured."""

THIN_TABLE_PAYS_IN = ("num_parameters", "size_mb")
"""Figures that a rank of the embeddings can improve: looking rows up costs no time, the product after it does."""

Load = Callable[[Run, Workbench], tuple[Supernet, SearchSpace]]


def search_space(bench: Workbench, layer_order: Sequence[int] | None = None) -> SearchSpace:
    """The recipe's space over its parent, without choices that cannot pay."""
    return bench.layout.search_space(paying(bench)[0], layer_order)


def paying(bench: Workbench) -> tuple[dict[str, Any], list[str]]:
    """The choices of the recipe that can pay on its workload, and why others cannot."""
    workload, figures = bench.recipe.workload, bench.recipe.figures
    tokens = bench.layout.inputs.longest_sequence(workload.sequence_length)
    refused = {bits: why for bits in BITS if (why := why_not(bits, workload, figures))}
    return pruned(bench.recipe.space.model_dump(), tokens, refused, whole_embedding(bench))


def whole_embedding(bench: Workbench) -> str:
    """Why the table of embeddings must stay whole or cannot pay otherwise; empty where it can."""
    if bench.layout.ties_embedding(bench.recipe.task.type):
        return "the output head shares the embeddings' table"
    if not {*THIN_TABLE_PAYS_IN} & {*bench.recipe.figures}:
        return f"it pays in {' and '.join(THIN_TABLE_PAYS_IN)} only, which no objective or constraint names"
    return ""


def calibration_set(bench: Workbench) -> EvaluationSet:
    """A few hundred examples of the training data, to see what matters in the parent."""
    train = bench.splits.train
    return EvaluationSet.of(train.select(range(min(CALIBRATION_EXAMPLES, len(train)))), bench.splits.task, 32)


def store_activations(supernet: Supernet, bench: Workbench, folder: Path) -> None:
    """Stores what bases of low ranks are made from, where a rank is open."""
    if search_space(bench).has_low_ranks:
        calibrate(supernet, calibration_set(bench).batches).save(folder)


def load_supernet(run: Run, bench: Workbench) -> tuple[Supernet, SearchSpace]:
    """The trained supernet of a run on the training device, and its space with the layers in importance order."""
    supernet = Supernet(bench.load_model(run.supernet).to(training_device()), Activations.load(run.supernet))
    supernet.model.eval()
    return supernet, search_space(bench, run.layer_order)


def make_profile(run: Run, bench: Workbench, load: Load = load_supernet) -> SubnetPredictor:
    """Measures subnetworks, each extracted, and fits the latency predictor on them.

    Where the latency is bounded and measured here, only half of them are sampled; the others follow in groups, chosen
    where those before leave the predictor least sure near the bound.
    Spread over all latencies, choosing did not beat sampling (experiments/bench).

    Args:
        run: Keeps the measurements and the predictor.
        bench: Of its recipe.
        load: Gives the supernet and its space, both in order of importance; no latency depends on whether the weights
            are trained.
    """
    recipe = bench.recipe
    if any(run.predictor.glob("*")):
        return SubnetPredictor.load(run.predictor, recipe.workload)
    supernet, space = load(run, bench)
    costs = AnalyticCosts.of(supernet.model, supernet.layout)
    bound = recipe.bounds.get("latency_ms")
    around_ms = bound.value if bound else None
    drawn, chosen, measured = _measured(run, bench, supernet, space, around_ms)
    subnets = [*drawn, *chosen]
    macs = [float(costs.macs(subnet, recipe.workload.sequence_length)) for subnet in subnets]
    latency_ms = [measured[subnet.key].latency_ms for subnet in subnets]
    ceilings = None if run.elsewhere else Ceilings.measure(recipe.workload)
    predictor = SubnetPredictor.fit(
        space,
        subnets,
        latency_ms,
        recipe.workload,
        macs=macs,
        baselines={"roofline": roofline_ms(costs, subnets, recipe.workload, ceilings)} if ceilings else {},
        prior=priors(run),
        around_ms=around_ms,
        chosen=len(chosen),
        seed=recipe.seed,
    )
    with run.building(run.predictor) as work:
        predictor.save(work)
    return predictor


def _measured(
    run: Run, bench: Workbench, supernet: Supernet, space: SearchSpace, around_ms: float | None
) -> tuple[list[SubnetConfig], list[SubnetConfig], dict[str, Timing]]:
    """What is sampled, what is chosen because of what was measured before, and what all of them took."""
    samples, seed = bench.recipe.profile.samples, bench.recipe.seed
    known, chosen = reused(run, space)
    active = around_ms is not None and not run.elsewhere
    drawn = profile_sample(space, (samples + 1) // 2 if active else samples, seed, known, chosen)
    measured = measure_subnets(run, bench, supernet, [*drawn, *chosen])
    while around_ms is not None and active and len(measured) < samples:
        count = min(TOGETHER, samples - len(measured))
        following = next_subnets(space, [*drawn, *chosen], measured, count, around_ms, seed)
        if not following:
            break
        chosen += following
        measured = measure_subnets(run, bench, supernet, [*drawn, *chosen], is_scale_open=False)
    return drawn, chosen, measured


def profile_sample(
    space: SearchSpace,
    samples: int,
    seed: int,
    known: Sequence[SubnetConfig] = (),
    chosen: Sequence[SubnetConfig] = (),
) -> list[SubnetConfig]:
    """Distinct subnetworks to measure: the corners, then uniform and per-layer ones; all of a small space.

    What is measured already comes before what is sampled, and counts; so does what was chosen, which is left out.
    """
    rng = Random(f"{seed}/profile")
    apart = {subnet.key for subnet in chosen}
    found = {s.key: s for s in (space.largest, space.smallest, *known) if s.key not in apart}
    for _ in range(100 * samples):
        if len(found) + len(apart) >= min(samples, space.size):
            break
        subnet = space.sample_mixed(rng)
        if subnet.key not in apart:
            found[subnet.key] = subnet
    return list(found.values())


def next_subnets(
    space: SearchSpace,
    known: Sequence[SubnetConfig],
    measured: Mapping[str, Timing],
    count: int,
    around_ms: float,
    seed: int,
) -> list[SubnetConfig]:
    """Subnetworks to measure next, of some sampled ones: the same after the same measurements."""
    rng = Random(f"{seed}/profile/{len(known)}")
    sampled = {subnet.key: subnet for subnet in (space.sample_mixed(rng) for _ in range(POOL))}
    pool = [subnet for key, subnet in sampled.items() if key not in measured]
    latency_ms = np.array([measured[subnet.key].latency_ms for subnet in known])
    table = features(space, known), latency_ms, features(space, pool)
    return [pool[k] for k in least_sure(*table, min(count, len(pool)), around_ms=around_ms)]


def measure_subnets(
    run: Run, bench: Workbench, supernet: Supernet, subnets: Sequence[SubnetConfig], *, is_scale_open: bool = True
) -> dict[str, Timing]:
    """Latencies of extracted subnetworks by key; those in the run's measurements are not measured again.

    While the scale is open, which it is until a predictor is fitted, the median parent beside all groups is the scale
    of all latencies; those beside a slower one, while something else ran, are measured once more.
    """
    workload, store = bench.recipe.workload, run.store
    is_scale_open &= not any(run.predictor.glob("*"))
    missing = [subnet for subnet in subnets if store.get(subnet.key, workload, "profile") is None]
    if missing and run.elsewhere:
        raise InputError(
            f"`{run.folder}` takes its latencies from another device, and {len(missing)} are not here yet; "
            "`nas profile RECIPE --export FOLDER` writes what to measure there, `--import FOLDER` brings it back."
        )

    def measure_group(group: Sequence[SubnetConfig]) -> None:
        models = {subnet.key: supernet.extract(subnet) for subnet in group}
        timed = time_models(bench, supernet, models, store, is_scale_open=is_scale_open)
        for subnet in group:
            store.add(subnet, workload, "profile", timed[subnet.key])

    if missing:
        with progress("profile") as report:
            for start, group in groups(missing):
                measure_group(group)
                report(start + len(group), len(missing), "")
            timings = {m.subnet.key: m.timing for m in store.rows(workload, "profile")}
            limit = max_drift(bench.recipe.profile.precision)
            for _, group in groups([s for s in missing if is_scale_open and timings[s.key].drift > limit]):
                measure_group(group)
    timings = {m.subnet.key: m.timing for m in store.rows(workload, "profile")}
    say_doubts({subnet.key: timings[subnet.key] for subnet in missing}, bench)
    return {subnet.key: timings[subnet.key] for subnet in subnets}


def say_doubts(timings: Mapping[str, Timing], bench: Workbench) -> None:
    """Says which latencies are not as precise as they were to be; what is derived from them has wider intervals."""
    if said := doubts(timings, bench.recipe.profile.precision):
        say(f"noisy      {said}")


def time_models(
    bench: Workbench,
    supernet: Supernet,
    models: dict[str, PreTrainedModel],
    store: MeasurementStore,
    *,
    is_scale_open: bool = False,
) -> dict[str, Timing]:
    """Times models beside the parent's architecture as the anchor, which counts for the scale if that is open."""
    workload, inputs = bench.recipe.workload, bench.dummy_inputs(bench.recipe.workload)
    anchor_ms = store.anchor_ms(workload)
    calls = {key: prepared(model, inputs, workload) for key, model in models.items()}
    anchor = prepared(supernet.extract(supernet.parent), inputs, workload)
    precision = bench.recipe.profile.precision
    timed = measure_in_calm(calls, anchor, workload, anchor_ms=anchor_ms, precision=precision)
    if anchor_ms is None or is_scale_open:
        store.add(supernet.parent, workload, "anchor", timed[ANCHOR].uncorrected)
    return timed

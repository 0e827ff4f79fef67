"""What a search starts from: its space, the trained supernet, and the latency profile of this device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random

import numpy as np

from nas.runs.run import Run
from nas.supernets.latency import measure_subnets
from nas.supernets.load import load_supernet
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from predictors import AnalyticCosts, DevicePeak, MeasurementStore, SubnetPredictor, Timing, roofline_ms
from predictors.latency.active_learning import most_uncertain
from predictors.latency.features import features
from predictors.measurement.measure import GROUP_SIZE
from search_spaces import SearchSpace, SubnetConfig

N_CANDIDATES = 512
"""Sampled subnetworks of which some are chosen to be measured."""

LoadSupernet = Callable[[Run, TaskContext], tuple[Supernet, SearchSpace]]


def run_profile(run: Run, context: TaskContext, load: LoadSupernet = load_supernet) -> SubnetPredictor:
    """Measures subnetworks, each extracted, and fits the latency predictor on them.

    Where the latency is bounded and measured here, only half of them are sampled; the others follow in groups, chosen
    where those before leave the predictor least sure near the bound.
    Spread over all latencies, choosing did not beat sampling (experiments/bench).

    Args:
        run: Keeps the measurements and the predictor.
        context: Of its recipe.
        load: Gives the supernet and its space, both in order of importance; no latency depends on whether the weights
            are trained.
    """
    recipe = context.recipe
    if any(run.predictor.glob("*")):
        return SubnetPredictor.load(run.predictor, recipe.workload)
    supernet, space = load(run, context)
    costs = AnalyticCosts.from_model(supernet.model, supernet.layout)
    bound = recipe.bounds.get("latency_ms")
    bound_ms = bound.value if bound else None
    drawn, chosen, measured = _measure_all(run, context, supernet, space, bound_ms)
    subnets = [*drawn, *chosen]
    macs = [float(costs.macs(subnet, recipe.workload.sequence_length)) for subnet in subnets]
    latency_ms = [measured[subnet.key].latency_ms for subnet in subnets]
    peak = None if run.is_remote else DevicePeak.measure(recipe.workload)
    predictor = SubnetPredictor.fit(
        space,
        subnets,
        latency_ms,
        recipe.workload,
        macs=macs,
        baselines={"roofline": roofline_ms(costs, subnets, recipe.workload, peak)} if peak else {},
        prior=prior_predictors(run),
        bound_ms=bound_ms,
        n_active=len(chosen),
        seed=recipe.seed,
    )
    with run.building(run.predictor) as work:
        predictor.save(work)
    return predictor


def _measure_all(
    run: Run, context: TaskContext, supernet: Supernet, space: SearchSpace, bound_ms: float | None
) -> tuple[list[SubnetConfig], list[SubnetConfig], dict[str, Timing]]:
    """What is sampled, what is chosen because of what was measured before, and what all of them took."""
    samples, seed = context.recipe.profile.samples, context.recipe.seed
    known, chosen = reusable_measurements(run, space)
    active = bound_ms is not None and not run.is_remote
    drawn = profile_sample(space, (samples + 1) // 2 if active else samples, seed, known, chosen)
    measured = measure_subnets(run, context, supernet, [*drawn, *chosen])
    while bound_ms is not None and active and len(measured) < samples:
        count = min(GROUP_SIZE, samples - len(measured))
        following = next_subnets(space, [*drawn, *chosen], measured, count, bound_ms, seed)
        if not following:
            break
        chosen += following
        measured = measure_subnets(run, context, supernet, [*drawn, *chosen], may_set_reference=False)
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
    bound_ms: float,
    seed: int,
) -> list[SubnetConfig]:
    """Subnetworks to measure next, of some sampled ones: the same after the same measurements."""
    rng = Random(f"{seed}/profile/{len(known)}")
    sampled = {subnet.key: subnet for subnet in (space.sample_mixed(rng) for _ in range(N_CANDIDATES))}
    pool = [subnet for key, subnet in sampled.items() if key not in measured]
    latency_ms = np.array([measured[subnet.key].latency_ms for subnet in known])
    table = features(space, known), latency_ms, features(space, pool)
    return [pool[k] for k in most_uncertain(*table, min(count, len(pool)), bound_ms=bound_ms)]


def reusable_measurements(run: Run, space: SearchSpace) -> tuple[list[SubnetConfig], list[SubnetConfig]]:
    """Subnetworks of the space that earlier runs measured where this one measures; their latencies become its own.

    They count only beside the same anchor, because every latency is a multiple of the anchor's.

    Returns:
        Those drawn at random, and those that an earlier run chose (see `nas.stages.make_profile`).
    """
    workload, store, found, chosen = run.recipe.workload, run.store, dict[str, SubnetConfig](), set[str]()
    for earlier in _previous_runs(run):
        if not _same_conditions(earlier, run):
            continue
        theirs = MeasurementStore(earlier.measurements, run.device)
        if any(earlier.predictor.glob("*")):
            predictor = SubnetPredictor.load(earlier.predictor)
            drawn = len(predictor.subnets) - predictor.report.n_active
            chosen |= {subnet.key for subnet in predictor.subnets[drawn:]}
        reference = theirs.reference(workload)
        if reference is None or theirs.rows(workload, "anchor")[0].subnet != space.parent:
            continue
        if store.reference(workload) is None:
            store.add(space.parent, workload, "anchor", reference)
        for row in theirs.rows(workload, "profile"):
            if row.subnet in space:
                found[row.subnet.key] = row.subnet
                if store.get(row.subnet.key, workload, "profile") is None:
                    store.add(row.subnet, workload, "profile", row.timing)
    return [s for s in found.values() if s.key not in chosen], [s for s in found.values() if s.key in chosen]


def prior_predictors(run: Run) -> list[SubnetPredictor]:
    """Predictors of earlier runs on other devices or workloads.

    Raises:
        InputError: If a folder is no run, or holds no whole predictor.
    """
    return [
        SubnetPredictor.load(earlier.predictor)
        for earlier in _previous_runs(run)
        if not _same_conditions(earlier, run)
    ]


def _previous_runs(run: Run) -> list[Run]:
    return [Run(folder) for folder in run.recipe.profile.earlier]


def _same_conditions(earlier: Run, run: Run) -> bool:
    return (earlier.device, earlier.recipe.workload) == (run.device, run.recipe.workload)

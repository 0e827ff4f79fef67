"""The profile stage: measures latencies of subnetworks and fits the latency predictor; reuses previous runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
"""Sampled subnetworks from which active learning selects."""


def run_profile(run: Run, context: TaskContext, cluster: str | None = None) -> None:
    """Measures subnetworks of the trained supernet and saves the latency predictor in ``run.predictor``.

    Args:
        run: The run, with its supernet.
        context: The context of its recipe.
        cluster: Not used; latencies are measured on this device.

    Raises:
        InputError: If the latencies come from another device and are not imported yet.
    """
    fit_predictor(run, context, *load_supernet(run, context))


def fit_predictor(run: Run, context: TaskContext, supernet: Supernet, space: SearchSpace) -> None:
    """Measures extracted subnetworks, fits the latency predictor on them and saves it.

    If the latency has a bound and is measured here, half of the subnetworks are sampled. The others are selected in
    groups, where the predictor fitted so far is least certain near the bound. Without a bound all are sampled, because
    active learning over all latencies was no better than sampling (experiments/bench).

    Args:
        run: The run.
        context: The context of its recipe.
        supernet: A supernet in order of importance, trained or not: latency does not depend on the weights.
        space: Its space, with the layers in that order.
    """
    recipe = context.recipe
    costs = AnalyticCosts.from_model(supernet.model, supernet.layout)
    bound = recipe.bounds.get("latency_ms")
    bound_ms = bound.value if bound else None
    sampled, selected, measured = _measure_all(run, context, supernet, space, bound_ms)
    subnets = [*sampled, *selected]
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
        n_active=len(selected),
        seed=recipe.seed,
    )
    with run.building(run.predictor) as work:
        predictor.save(work)


def _measure_all(
    run: Run, context: TaskContext, supernet: Supernet, space: SearchSpace, bound_ms: float | None
) -> tuple[list[SubnetConfig], list[SubnetConfig], dict[str, Timing]]:
    """Sampled subnetworks, actively selected ones, and the latencies of all of them by key."""
    samples, seed = context.recipe.profile.samples, context.recipe.seed
    known, selected = reusable_measurements(run, space)
    active = bound_ms is not None and not run.is_remote
    sampled = profile_sample(space, (samples + 1) // 2 if active else samples, seed, known, selected)
    measured = measure_subnets(run, context, supernet, [*sampled, *selected])
    while bound_ms is not None and active and len(measured) < samples:
        count = min(GROUP_SIZE, samples - len(measured))
        group = next_subnets(space, [*sampled, *selected], measured, count, bound_ms, seed)
        if not group:
            break
        selected += group
        measured = measure_subnets(run, context, supernet, [*sampled, *selected], may_set_reference=False)
    return sampled, selected, measured


def profile_sample(
    space: SearchSpace,
    samples: int,
    seed: int,
    known: Sequence[SubnetConfig] = (),
    selected: Sequence[SubnetConfig] = (),
) -> list[SubnetConfig]:
    """Distinct subnetworks to measure: largest, smallest, known ones, then uniform and per-layer samples.

    Args:
        space: The space; a small one is returned completely.
        samples: Wanted number, with ``known`` and ``selected``.
        seed: Seed of the sampling.
        known: Subnetworks that are measured already.
        selected: Subnetworks that active learning selected; they are not returned.
    """
    rng = Random(f"{seed}/profile")
    excluded = {subnet.key for subnet in selected}
    sample = {s.key: s for s in (space.largest, space.smallest, *known) if s.key not in excluded}
    for _ in range(100 * samples):
        if len(sample) + len(excluded) >= min(samples, space.size):
            break
        subnet = space.sample_mixed(rng)
        if subnet.key not in excluded:
            sample[subnet.key] = subnet
    return list(sample.values())


def next_subnets(
    space: SearchSpace,
    known: Sequence[SubnetConfig],
    measured: Mapping[str, Timing],
    count: int,
    bound_ms: float,
    seed: int,
) -> list[SubnetConfig]:
    """Subnetworks to measure next: of sampled candidates, those of which the predictor is least certain.

    The same measurements give the same subnetworks.
    """
    rng = Random(f"{seed}/profile/{len(known)}")
    candidates = {subnet.key: subnet for subnet in (space.sample_mixed(rng) for _ in range(N_CANDIDATES))}
    pool = [subnet for key, subnet in candidates.items() if key not in measured]
    latency_ms = np.array([measured[subnet.key].latency_ms for subnet in known])
    table = features(space, known), latency_ms, features(space, pool)
    return [pool[k] for k in most_uncertain(*table, min(count, len(pool)), bound_ms=bound_ms)]


def reusable_measurements(run: Run, space: SearchSpace) -> tuple[list[SubnetConfig], list[SubnetConfig]]:
    """Subnetworks of the space that previous runs measured under the same conditions; copies their latencies.

    A previous run counts only if it has the same reference model: every latency is a multiple of the reference's.

    Returns:
        Subnetworks that were sampled at random, and those that active learning selected (see `fit_predictor`).
    """
    workload, store = run.recipe.workload, run.store
    reusable, selected = dict[str, SubnetConfig](), set[str]()
    for previous in _previous_runs(run):
        if not _same_conditions(previous, run):
            continue
        theirs = MeasurementStore(previous.measurements, run.device)
        if previous.is_profiled:
            predictor = SubnetPredictor.load(previous.predictor)
            n_sampled = len(predictor.subnets) - predictor.report.n_active
            selected |= {subnet.key for subnet in predictor.subnets[n_sampled:]}
        reference = theirs.reference(workload)
        if reference is None or theirs.rows(workload, "anchor")[0].subnet != space.parent:
            continue
        if store.reference(workload) is None:
            store.add(space.parent, workload, "anchor", reference)
        for row in theirs.rows(workload, "profile"):
            if row.subnet in space:
                reusable[row.subnet.key] = row.subnet
                if store.get(row.subnet.key, workload, "profile") is None:
                    store.add(row.subnet, workload, "profile", row.timing)
    subnets = reusable.values()
    return [s for s in subnets if s.key not in selected], [s for s in subnets if s.key in selected]


def prior_predictors(run: Run) -> list[SubnetPredictor]:
    """Predictors of previous runs on other devices or workloads.

    Raises:
        InputError: If a folder is not a run, or has no predictor.
    """
    return [
        SubnetPredictor.load(previous.predictor)
        for previous in _previous_runs(run)
        if not _same_conditions(previous, run)
    ]


def _previous_runs(run: Run) -> list[Run]:
    return [Run(folder) for folder in run.recipe.profile.earlier]


def _same_conditions(previous: Run, run: Run) -> bool:
    return (previous.device, previous.recipe.workload) == (run.device, run.recipe.workload)

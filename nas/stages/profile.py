"""The profile stage: measures latencies of subnetworks and fits the latency predictor; reuses previous runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from nas.recipe.schema import Profile
from nas.runs.progress import print_line
from nas.runs.run import Run
from nas.runs.target import Target
from nas.stages.footprints import measure_footprints
from nas.supernets.latency import Enough, measure_subnets
from nas.supernets.load import load_supernet
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from predictors import AnalyticCosts, DevicePeak, SubnetPredictor, Timing, roofline_ms
from predictors.latency.active_learning import most_uncertain
from predictors.latency.features import feature_names, features
from predictors.latency.predictor import MIN_MEASUREMENTS, quick_error
from predictors.measurement.budget import Budget
from search_spaces import SearchSpace, SubnetConfig

N_CANDIDATES, GROUP_SIZE = 512, 8
"""Sampled subnetworks from which active learning selects, and how many it selects at once."""
FOOTPRINTS_MEASURED = 12
"""Subnetworks whose costs among `FOOTPRINTS` are measured, if the recipe names one: the first of the profile."""
MIN_FALL = 0.05
"""The predictor's error has stopped falling when further rounds reduce it by less than this share."""
MIN_TO_STOP = 24
"""Measurements that it takes to believe a cross-validated error."""


def run_profile(run: Run, context: TaskContext, cluster: str | None = None) -> None:
    """Measures subnetworks of the trained supernet and saves the latency predictor of each workload.

    Args:
        run: The run, with its supernet.
        context: The context of its recipe.
        cluster: Not used; latencies are measured on this device.

    Raises:
        InputError: If the latencies come from another device and are not imported yet.
    """
    supernet, space = load_supernet(run, context)
    for target in sorted(run.targets, key=lambda target: target.is_remote):
        if not target.has_predictor:
            fit_predictor(target, context, supernet, space)
        sample = target.load_predictor().subnets[:FOOTPRINTS_MEASURED]
        measure_footprints(target, context, supernet, sample)


def fit_predictor(target: Target, context: TaskContext, supernet: Supernet, space: SearchSpace) -> None:
    """Measures extracted subnetworks, fits the latency predictor on them and saves it.

    If the latency has a bound and is measured here, half of the subnetworks are sampled. The others are selected in
    groups, where the predictor fitted so far is least certain near the bound. Without a bound all are sampled, because
    active learning over all latencies was no better than sampling (experiments/bench).

    Args:
        target: The workload on its device.
        context: The context of the run's recipe.
        supernet: A supernet in order of importance, trained or not: latency does not depend on the weights.
        space: Its space, with the layers in that order.
    """
    recipe, workload = context.recipe, target.workload
    costs = AnalyticCosts.from_model(supernet.model, supernet.layout, recipe.task.type, supernet.dtype)
    sampled, selected, measured = _measure_all(target, context, supernet, space)
    subnets = [*sampled, *selected]
    macs = [float(costs.macs(subnet, workload.sequence_length)) for subnet in subnets]
    latency_ms = [measured[subnet.key].latency_ms for subnet in subnets]
    peak = None if target.is_remote else DevicePeak.measure(workload)
    predictor = SubnetPredictor.fit(
        space,
        subnets,
        latency_ms,
        workload,
        macs=macs,
        baselines={"roofline": roofline_ms(costs, subnets, workload, peak)} if peak else {},
        prior=prior_predictors(target),
        bound_ms=_bound_ms(target),
        n_active=len(selected),
        seed=recipe.seed,
    )
    with target.run.building(target.predictor) as work:
        predictor.save(work)


def _bound_ms(target: Target) -> float | None:
    """The bound on the latency, near which the predictor should be good; None if there is none.

    The reference model is the parent: what is relative to the parent's latency is known once that is measured.
    """
    reference_ms, name = target.reference_ms, target.cost_name("latency_ms")
    parent = {} if reference_ms is None else {name: reference_ms}
    bound = target.run.recipe.with_parent(parent).bounds.get(name)
    return None if bound is None else bound.upper if math.isfinite(bound.upper) else bound.value


class Accuracy:
    """Whether more measuring would still improve the latency predictor.

    It is enough once the cross-validated error has reached the recipe's, or no longer falls with further rounds, or
    every latency is precise enough.

    Args:
        target: The workload, with earlier measurements.
        space: The space of the run.
        subnets: All subnetworks that may be measured.

    Attributes:
        error: The cross-validated error, relative; None before the first check.
    """

    def __init__(self, target: Target, space: SearchSpace, subnets: Sequence[SubnetConfig]) -> None:
        self.settings, self.names = target.run.recipe.profile, feature_names(space)
        self._store, self._workload = target.store, target.workload
        self._features = dict(zip([s.key for s in subnets], features(space, subnets), strict=True))
        self.error: float | None = None
        self._models = 0

    @property
    def is_reached(self) -> bool:
        """Whether the error is reached, with enough measurements to believe it."""
        return (
            self.error is not None
            and self.error <= self.settings.error
            and self._models >= min(MIN_TO_STOP, len(self._features))
        )

    def __call__(self, timings: Mapping[str, Timing]) -> bool:
        """Checks the measurements of the run together with those of a group that is being measured."""
        known = {m.subnet.key: m.timing.ratio for m in self._store.rows(self._workload, "profile")}
        known |= {key: timing.ratio for key, timing in timings.items()}
        ratios = {key: ratio for key, ratio in known.items() if key in self._features}
        is_precise = max(timing.precision for timing in timings.values()) <= self.settings.precision
        if len(ratios) < MIN_MEASUREMENTS:
            return is_precise
        table = np.array([self._features[key] for key in ratios])
        before, self.error = self.error, quick_error(table, np.array(list(ratios.values())), self.names)
        has_stalled = before is not None and self._models == len(ratios) and self.error > (1 - MIN_FALL) * before
        self._models = len(ratios)
        return has_stalled or is_precise or self.is_reached

    @property
    def note(self) -> str:
        """The error in words."""
        return "" if self.error is None else f"predictor's error {self.error:.1%}"


def _measure_all(
    target: Target, context: TaskContext, supernet: Supernet, space: SearchSpace
) -> tuple[list[SubnetConfig], list[SubnetConfig], dict[str, Timing]]:
    """Sampled subnetworks, actively selected ones, and the latencies of all of them by key."""
    settings, seed = context.recipe.profile, context.recipe.seed
    known, selected = reusable_measurements(target, space)
    active = target.cost_name("latency_ms") in context.recipe.constraints and not target.is_remote
    share = 0.5 if active else 1.0
    sampled = profile_sample(space, math.ceil(settings.samples * share), seed, known, selected)
    accuracy, budget = Accuracy(target, space, sampled), Budget.of_minutes(settings.minutes)
    least = max(MIN_MEASUREMENTS - len(known) - len(selected), 0)
    when: dict[str, Any] = {"enough": accuracy, "is_done": lambda: accuracy.is_reached, "note": lambda: accuracy.note}
    part = Budget(None if budget.seconds is None else share * budget.seconds)
    measured = measure_subnets(target, context, supernet, [*sampled, *selected], budget=part, least=least, **when)
    sampled, selected = ([s for s in subnets if s.key in measured] for subnets in (sampled, selected))
    if measured:
        accuracy(measured)
    if budget.seconds is None and part.seconds is not None:
        budget.propose(part.seconds / share)
    bound_ms = _bound_ms(target)
    while bound_ms is not None and active and len(measured) < settings.samples and not budget.is_over:
        count = min(GROUP_SIZE, settings.samples - len(measured))
        group = next_subnets(space, [*sampled, *selected], measured, count, bound_ms, seed)
        if not group:
            break
        part = budget.share(count / (settings.samples - len(measured)))
        options: dict[str, Any] = {"budget": part, "may_set_reference": False, "enough": _are_precise(settings)}
        measured |= measure_subnets(target, context, supernet, group, **options)
        selected += group
    if not target.is_remote:
        wanted = max(min(settings.samples, space.size), len(measured))
        print_line(f"profile{target.label}    {_summary(settings, len(measured), wanted, accuracy, budget)}")
    return sampled, selected, measured


def _are_precise(settings: Profile) -> Enough:
    return lambda timings: max(timing.precision for timing in timings.values()) <= settings.precision


def _summary(settings: Profile, n_measured: int, wanted: int, accuracy: Accuracy, budget: Budget) -> str:
    """What was measured, in how much time; if time did not suffice, what was missed and the way out."""
    summary = f"{n_measured} of {wanted} subnetworks in {budget.elapsed / 60:.1f} minutes"
    summary += f"; {accuracy.note}" if accuracy.note else ""
    missed = accuracy.error is not None and accuracy.error > settings.error
    summary += f", not the {settings.error:.1%} of `profile.error`" if missed else ""
    if budget.is_over and (missed or n_measured < wanted):
        return f"{summary}; more time: `profile.minutes={2 * (budget.seconds or 0) / 60:.2g}`"
    return f"{summary}; more time would not lower it, more `profile.samples` may" if missed else summary


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


def reusable_measurements(target: Target, space: SearchSpace) -> tuple[list[SubnetConfig], list[SubnetConfig]]:
    """Subnetworks of the space that previous runs measured under the same conditions; copies their latencies.

    A previous run counts only if it has the same reference model: every latency is a multiple of the reference's.

    Returns:
        Subnetworks that were sampled at random, and those that active learning selected (see `fit_predictor`).
    """
    workload, store = target.workload, target.store
    reusable, selected = dict[str, SubnetConfig](), set[str]()
    for previous in _previous_targets(target):
        if not _same_conditions(previous, target):
            continue
        theirs = previous.store
        if previous.has_predictor:
            predictor = previous.load_predictor()
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


def prior_predictors(target: Target) -> list[SubnetPredictor]:
    """Predictors of previous runs on other devices or workloads.

    Raises:
        InputError: If a folder is not a run, or has no predictor.
    """
    return [
        previous.load_predictor() for previous in _previous_targets(target) if not _same_conditions(previous, target)
    ]


def _previous_targets(target: Target) -> list[Target]:
    return [previous for folder in target.run.recipe.profile.earlier for previous in Run(folder).targets]


def _same_conditions(previous: Target, target: Target) -> bool:
    return (previous.device, previous.workload) == (target.device, target.workload)

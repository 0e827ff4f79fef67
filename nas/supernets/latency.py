"""Measures latencies of extracted subnetworks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nas.runs.progress import print_line, progress
from nas.runs.run import Run
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from predictors import MeasurementStore, Timing
from predictors.measurement.measure import groups, measure_retrying_if_noisy
from predictors.measurement.runtimes import prepare
from predictors.measurement.timing import REFERENCE, max_drift, noise_warning
from search_spaces import InputError, SubnetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def measure_subnets(
    run: Run,
    context: TaskContext,
    supernet: Supernet,
    subnets: Sequence[SubnetConfig],
    *,
    may_set_reference: bool = True,
) -> dict[str, Timing]:
    """Latencies of extracted subnetworks by key; those in the run's measurements are not measured again.

    While the scale is open, which it is until a predictor is fitted, the median parent beside all groups is the scale
    of all latencies; those beside a slower one, while something else ran, are measured once more.
    """
    workload, store = context.recipe.workload, run.store
    may_set_reference &= not run.is_profiled
    missing = [subnet for subnet in subnets if store.get(subnet.key, workload, "profile") is None]
    if missing and run.is_remote:
        raise InputError(
            f"`{run.folder}` takes its latencies from another device, and {len(missing)} are not here yet; "
            "`nas profile RECIPE --export FOLDER` writes what to measure there, `--import FOLDER` brings it back."
        )

    def measure_group(group: Sequence[SubnetConfig]) -> None:
        models = {subnet.key: supernet.extract(subnet) for subnet in group}
        timed = time_models(context, supernet, models, store, may_set_reference=may_set_reference)
        for subnet in group:
            store.add(subnet, workload, "profile", timed[subnet.key])

    if missing:
        with progress("profile") as report:
            for start, group in groups(missing):
                measure_group(group)
                report(start + len(group), len(missing), "")
            timings = {m.subnet.key: m.timing for m in store.rows(workload, "profile")}
            limit = max_drift(context.recipe.profile.precision)
            for _, group in groups([s for s in missing if may_set_reference and timings[s.key].drift > limit]):
                measure_group(group)
    timings = {m.subnet.key: m.timing for m in store.rows(workload, "profile")}
    warn_if_noisy({subnet.key: timings[subnet.key] for subnet in missing}, context)
    return {subnet.key: timings[subnet.key] for subnet in subnets}


def warn_if_noisy(timings: Mapping[str, Timing], context: TaskContext) -> None:
    """Says which latencies are not as precise as they were to be; what is derived from them has wider intervals."""
    if said := noise_warning(timings, context.recipe.profile.precision):
        print_line(f"noisy      {said}")


def time_models(
    context: TaskContext,
    supernet: Supernet,
    models: dict[str, PreTrainedModel],
    store: MeasurementStore,
    *,
    may_set_reference: bool = False,
) -> dict[str, Timing]:
    """Times models beside the parent's architecture as the anchor, which counts for the scale if that is open."""
    workload, inputs = context.recipe.workload, context.dummy_inputs(context.recipe.workload)
    reference_ms = store.reference_ms(workload)
    calls = {key: prepare(model, inputs, workload) for key, model in models.items()}
    reference = prepare(supernet.extract(supernet.parent), inputs, workload)
    precision = context.recipe.profile.precision
    timed = measure_retrying_if_noisy(calls, reference, workload, reference_ms=reference_ms, precision=precision)
    if reference_ms is None or may_set_reference:
        store.add(supernet.parent, workload, "anchor", timed[REFERENCE].raw)
    return timed

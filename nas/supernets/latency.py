"""Measures the latencies of extracted subnetworks."""

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
    """Measures the subnetworks that the run has not measured yet, in groups, each group together with the parent.

    Until a predictor is fitted, the median latency of the parent over all groups is the reference of all latencies.
    Groups whose parent was slower than that, because other work disturbed them, are measured once more.

    Args:
        run: Keeps the measurements.
        context: Of its recipe.
        supernet: The subnetworks are extracted from it.
        subnets: The subnetworks to measure.
        may_set_reference: Whether the parent's latency in these groups counts for the reference.

    Returns:
        Key of a subnetwork -> its latency.

    Raises:
        InputError: If the latencies of the run come from another device and some are missing.
    """
    workload, store = context.recipe.workload, run.store
    may_set_reference &= not run.is_profiled
    missing = [subnet for subnet in subnets if store.get(subnet.key, workload, "profile") is None]
    if missing and run.is_remote:
        raise InputError(
            f"the latencies of `{run.folder}` come from another device, and {len(missing)} are missing; run `nas "
            "profile RECIPE --export FOLDER` here, measure there, then run `nas profile RECIPE --import FOLDER` here."
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
    """Prints how many latencies are less precise than ``profile.precision``."""
    if warning := noise_warning(timings, context.recipe.profile.precision):
        print_line(f"noisy      {warning}")


def time_models(
    context: TaskContext,
    supernet: Supernet,
    models: dict[str, PreTrainedModel],
    store: MeasurementStore,
    *,
    may_set_reference: bool = False,
) -> dict[str, Timing]:
    """Measures models together with the parent's architecture.

    Args:
        context: Its recipe gives the workload and the precision.
        supernet: The parent is extracted from it.
        models: Name -> model.
        store: Holds the reference latency of the parent.
        may_set_reference: Whether the parent's latency is stored to set that reference.

    Returns:
        Name -> latency.
    """
    workload, inputs = context.recipe.workload, context.dummy_inputs(context.recipe.workload)
    reference_ms = store.reference_ms(workload)
    calls = {key: prepare(model, inputs, workload) for key, model in models.items()}
    reference = prepare(supernet.extract(supernet.parent), inputs, workload)
    precision = context.recipe.profile.precision
    timed = measure_retrying_if_noisy(calls, reference, workload, reference_ms=reference_ms, precision=precision)
    if reference_ms is None or may_set_reference:
        store.add(supernet.parent, workload, "anchor", timed[REFERENCE].raw)
    return timed

"""Measures latencies of subnetworks within a budget of time, and stores them in the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from nas.runs.progress import TimeReport, time_progress
from nas.runs.target import Target
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from predictors import AnalyticCosts, MeasurementStage, Timing, Workload
from predictors.measurement.budget import Budget
from predictors.measurement.groups import Visit, group_size
from predictors.measurement.memory import memory_mb
from predictors.measurement.prepare import prepare
from predictors.measurement.rounds import Call
from predictors.measurement.timing import REFERENCE
from search_spaces import InputError, SubnetConfig

Enough = Callable[[Mapping[str, Timing]], bool]
"""Whether the models of a group are known well enough, by their timings so far."""


def measure_subnets(
    target: Target,
    context: TaskContext,
    supernet: Supernet,
    subnets: Sequence[SubnetConfig],
    *,
    budget: Budget | None = None,
    least: int | None = None,
    may_set_reference: bool = True,
    **when: Any,
) -> dict[str, Timing]:
    """Measures the subnetworks that are not measured yet under a workload, in rounds together with the parent.

    Until a predictor is fitted, the median latency of the parent over all groups is the reference of all latencies.

    Args:
        target: The workload on its device.
        context: The context of the run's recipe.
        supernet: What is extracted from.
        subnets: What to measure.
        budget: Time limit; default: one proposed from the speed of the models.
        least: Subnetworks that are measured whatever the budget; default: all.
        may_set_reference: Whether the parent's latency in these groups counts for the reference.
        when: ``enough``, ``is_done`` and ``note`` of `subnet_visit`.

    Returns:
        Key of a subnetwork -> its latency, for those that time sufficed for.

    Raises:
        InputError: If the latencies come from another device and some are missing.
    """
    workload, store = target.workload, target.store
    may_set_reference &= not target.has_predictor
    missing = [subnet for subnet in subnets if store.get(subnet.key, workload, "profile") is None]
    if missing and target.is_remote:
        _raise_elsewhere(target, len(missing))
    if missing:
        budget = budget or Budget()
        with time_progress(f"profile{target.label}", budget) as report:
            visit = subnet_visit(
                target,
                context,
                supernet,
                {subnet.key: subnet for subnet in missing},
                "profile",
                budget,
                load=lambda subnet: prepare(
                    supernet.in_place(subnet), context.workload_inputs(subnet, workload), workload
                ),
                report=report,
                may_set_reference=may_set_reference,
                **when,
            )
            visit.least = len(missing) if least is None else least
            visit.measure([subnet.key for subnet in missing])
    timings = {m.subnet.key: m.timing for m in store.rows(workload, "profile")}
    return {subnet.key: timings[subnet.key] for subnet in subnets if subnet.key in timings}


def _raise_elsewhere(target: Target, missing: int) -> NoReturn:
    """Raises InputError: so many latencies must come from another device."""
    option = f" --workload {target.name}" if target.name else ""
    raise InputError(
        f"the latencies{target.label} of `{target.run.folder}` come from another device, and {missing} are missing; "
        f"run `nas profile RECIPE --export FOLDER{option}` here, measure there, then run `nas profile RECIPE --import "
        "FOLDER` here."
    )


def subnet_visit(
    target: Target,
    context: TaskContext,
    supernet: Supernet,
    subnets: Mapping[str, SubnetConfig],
    stage: MeasurementStage,
    budget: Budget,
    *,
    load: Callable[[SubnetConfig], Call],
    report: TimeReport,
    may_set_reference: bool = False,
    enough: Enough = lambda timings: False,
    is_done: Callable[[], bool] = lambda: False,
    note: Callable[[], str] = lambda: "",
    seed: int = 0,
) -> Visit:
    """A visit that measures subnetworks together with the parent's architecture, and stores their timings.

    Args:
        target: The workload on its device, whose store keeps the measurements.
        context: The context of the run's recipe.
        supernet: What the parent's architecture is extracted from.
        subnets: Key -> subnetwork.
        stage: Stage under which timings are stored.
        budget: Time limit.
        load: Loads a subnetwork.
        report: Told how far it is.
        may_set_reference: Whether the parent's latency is stored to set the reference.
        enough: See `predictors.measurement.groups.Visit`.
        is_done: See there.
        note: The number that matters so far, for the progress bar.
        seed: Order of the models.
    """
    workload, store = target.workload, target.store

    def save(timings: Mapping[str, Timing]) -> None:
        if store.reference_ms(workload) is None or may_set_reference:
            store.add(supernet.parent, workload, "anchor", timings[REFERENCE].raw)
        rows = [(subnets[key], timing) for key, timing in timings.items() if key != REFERENCE]
        store.add_all(rows, workload, stage)

    def on_progress(loaded: int, models: int, rounds: int) -> None:
        done = f"round {rounds} of {models} models" if rounds else f"loading {loaded + 1} of {models} models"
        report(" · ".join(filter(None, (f"{len(visit.measured)} done" * bool(visit.measured), done, note()))))

    def prepared(name: str) -> Call:
        if name == REFERENCE:
            return prepare(supernet.in_place(supernet.parent), context.dummy_inputs(workload), workload)
        return load(subnets[name])

    visit = Visit(
        prepare=prepared,
        workload=workload,
        budget=budget,
        store=save,
        reference_ms=lambda: store.reference_ms(workload),
        size=models_at_once(context, supernet, workload),
        enough=enough,
        is_done=is_done,
        on_progress=on_progress,
        tolerance=context.recipe.profile.precision,
        seed=seed,
    )
    return visit


def models_at_once(context: TaskContext, supernet: Supernet, workload: Workload) -> int:
    """Number of subnetworks that are in memory while they are measured."""
    costs = AnalyticCosts.from_model(supernet.model, supernet.layout, context.recipe.task.type, supernet.dtype)
    size_mb = float(costs.count(("size_mb",), [supernet.parent], workload)["size_mb"][0])
    return group_size(size_mb, memory_mb(workload))

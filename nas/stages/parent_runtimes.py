"""The parent in other runtimes: what one gains without a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nas.fronts.point import PARENT_RUNTIMES, ParentRuntime, Point
from nas.recipe.objectives import FOOTPRINTS, RATES, base_name, format_value
from nas.recipe.schema import Recipe
from nas.runs.progress import print_line, progress
from nas.runs.run import Run
from nas.runs.target import Target
from nas.tasks.context import TaskContext
from predictors import Timing, measure
from predictors.measurement.budget import Budget
from predictors.measurement.prepare import prepare
from predictors.measurement.rounds import benchmark_mode
from predictors.measurement.runtime import Call
from predictors.measurement.runtimes import RUNTIMES
from predictors.measurement.timing import REFERENCE, reported_latency
from predictors.measurement.workload import RuntimeName, Workload

OF_RUNTIME = ("latency_ms", *RATES, *FOOTPRINTS)
"""Costs that differ between runtimes; only the latency is measured in others."""
LARGEST_MB = 1000.0
"""A larger parent is not written for other runtimes, which would take minutes and several times its memory."""


def other_runtimes(recipe: Recipe) -> list[RuntimeName]:
    """The runtimes that the parent is measured in besides a workload's own; to compile is asked for, as it is slow."""
    wanted = set(recipe.baselines) & {"runtimes", "compile"}
    return [name for name in RUNTIMES if wanted and (name != "compile" or name in wanted)]


def runtimes_beside(recipe: Recipe, workload: Workload) -> list[RuntimeName]:
    """Those of `other_runtimes` that are installed, and no workload's own."""
    return [name for name in other_runtimes(recipe) if name != workload.runtime and RUNTIMES[name].is_installed]


def parent_in_fastest_runtimes(
    run: Run, context: TaskContext, parent: Point, budget: Budget | None = None
) -> list[Point]:
    """The parent in the fastest of the other runtimes of each workload, if the recipe asks for it and it is faster.

    The points have the metrics of the parent, and latencies under all workloads of this device that they can run.

    Args:
        run: The run; latencies of another device are not measured.
        context: The context of its recipe.
        parent: Its values.
        budget: Time limit: nothing is prepared after it, and one round always ends. Default: none.
    """
    timed = {t.cost_name("latency_ms"): _timed(t, context, parent, budget) for t in run.targets if not t.is_remote}
    fastest = {min(own, key=lambda source: own[source].latency_ms) for own in timed.values() if own}
    return [_point(parent, source, timed) for source in PARENT_RUNTIMES if source in fastest]


def _point(parent: Point, source: ParentRuntime, timed: Mapping[str, Mapping[str, Timing]]) -> Point:
    """The parent with its latencies in another runtime: those under each workload are known by name and source."""
    known = {name: own[source] for name, own in timed.items() if source in own}
    kept = {name for name in parent.values if base_name(name) not in OF_RUNTIME}
    values = {name: value for name, value in parent.values.items() if name in kept}
    errors = {name: error for name, error in parent.errors.items() if name in kept}
    values |= {name: timing.latency_ms for name, timing in known.items()}
    errors |= {name: reported_latency(timing, None, []).error_ms for name, timing in known.items()}
    return replace(parent, values=values, errors=errors, source=source)


def _timed(target: Target, context: TaskContext, parent: Point, budget: Budget | None) -> dict[str, Timing]:
    """Source of a point -> latency of the parent in that runtime, in rounds with the workload's own.

    The workload's own runtime comes first, as ``parent`` and under its name.
    """
    workload, inputs = target.workload, context.dummy_inputs(target.workload)
    others = runtimes_beside(context.recipe, workload)
    if others and parent.values["size_mb"] > LARGEST_MB:
        print_line(
            f"runtimes   the parent has {format_value('size_mb', parent.values['size_mb'])} MB, over {LARGEST_MB:g}: "
            "a run with another `workload.runtime` measures it there"
        )
        others = []
    if not others:
        return {}
    threads = replace(workload, runtime="torch", dtype="float32")  # other runtimes take their threads from PyTorch
    calls: dict[str, Call] = {}
    with progress(f"runtimes{target.label}") as report, benchmark_mode(threads):
        for number, name in enumerate(others, 1):
            if budget is not None and budget.is_over:
                print_line(f"runtimes   {name} is left out: `verify.minutes` are over")
                continue
            try:
                other = replace(workload, runtime=name)
                calls[f"parent-{name}"] = prepare(context.load_model(target.run.parent), inputs, other)
            except Exception as error:  # whatever an exporter says of a model, a baseline must not end the run
                reason = str(error).partition("\n")[0]
                print_line(f"runtimes   {name} is left out: {reason}")
            report(number, len(others), name)
        if not calls:
            return {}
        reference = prepare(context.load_model(target.run.parent), inputs, workload)
        reference_ms = parent.values[target.cost_name("latency_ms")]
        timed = measure(calls, reference, threads, reference_ms=reference_ms, budget=budget)
    own = dict.fromkeys(("parent", f"parent-{workload.runtime}"), timed[REFERENCE])
    return own | {source: timed[source] for source in PARENT_RUNTIMES if source in timed}

"""The parent in other runtimes: what one gains without a search."""

from __future__ import annotations

from dataclasses import replace

from nas.fronts.point import PARENT_RUNTIMES, Point
from nas.runs.progress import print_line, progress
from nas.runs.run import Run
from nas.tasks.context import TaskContext
from predictors import measure
from predictors.measurement.prepare import prepare
from predictors.measurement.rounds import benchmark_mode
from predictors.measurement.runtime import Call
from predictors.measurement.runtimes import RUNTIMES
from predictors.measurement.timing import REFERENCE
from search_spaces import InputError


def parent_in_fastest_runtime(run: Run, context: TaskContext, parent: Point) -> list[Point]:
    """The parent in the fastest of the other runtimes, if the recipe asks for it, a runtime is installed and faster.

    All are measured in rounds together with the parent in the runtime of the workload, and have its metrics.

    Args:
        run: The run; latencies of another device are not measured.
        context: The context of its recipe.
        parent: Its values on the workload.

    Returns:
        The point, or none.
    """
    if "runtimes" not in context.recipe.baselines or run.is_remote:
        return []
    workload, inputs = context.recipe.workload, context.dummy_inputs(context.recipe.workload)
    threads = replace(workload, runtime="torch", dtype="float32")  # other runtimes take their threads from PyTorch
    calls: dict[str, Call] = {}
    with progress("runtimes") as report, benchmark_mode(threads):
        for number, name in enumerate(RUNTIMES, 1):
            try:
                if name != workload.runtime:
                    other = replace(workload, runtime=name)
                    calls[f"parent-{name}"] = prepare(context.load_model(run.parent), inputs, other)
            except InputError as error:
                print_line(f"runtimes   {name} is left out: {error}")
            report(number, len(RUNTIMES), name)
        reference = prepare(context.load_model(run.parent), inputs, workload)
        timed = measure(calls, reference, threads, reference_ms=parent.values["latency_ms"]) if calls else {}
    sources = [source for source in PARENT_RUNTIMES if source in timed]
    fastest = min(sources, key=lambda source: timed[source].latency_ms, default=None)
    if fastest is None or timed[fastest].latency_ms >= timed[REFERENCE].latency_ms:
        return []
    timing = timed[fastest]
    errors = {**parent.errors, "latency_ms": timing.relative_spread * timing.latency_ms}
    return [replace(parent, values={**parent.values, "latency_ms": timing.latency_ms}, errors=errors, source=fastest)]

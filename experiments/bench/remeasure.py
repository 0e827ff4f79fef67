"""How many latencies of a finished run's front are within their reported interval when measured again.

    python experiments/bench/remeasure.py RUN [--processes 3]

Each process loads the exported models of the front and measures them, in other groups, relative to the parent.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from nas.runs.progress import quiet_libraries
from nas.runs.run import Run
from nas.stages.held_out import export_and_reload
from nas.supernets.latency import models_at_once
from nas.supernets.load import load_supernet
from nas.tasks.context import TaskContext
from predictors.measurement.budget import Budget
from predictors.measurement.groups import Visit, shuffled
from predictors.measurement.prepare import prepare
from predictors.measurement.rounds import Call
from predictors.measurement.timing import REFERENCE, Timing


def measure_again(folder: Path, seed: int, minutes: float) -> dict[str, dict[str, float]]:
    """Key -> latency in milliseconds, on the scale of the run and uncorrected."""
    quiet_libraries()
    run = Run(folder)
    context, store = TaskContext(run.recipe), run.target.store
    workload, inputs = run.recipe.workload, context.dummy_inputs(run.recipe.workload)
    supernet, _ = load_supernet(run, context)
    latencies: dict[str, dict[str, float]] = {}
    subnets = {point.key: point.subnet for point in run.front()}

    def load(key: str) -> Call:
        if key == REFERENCE:
            return prepare(supernet.extract(supernet.parent), inputs, workload)
        return prepare(export_and_reload(run, context, supernet, subnets[key]), inputs, workload)

    def add(timings: Mapping[str, Timing]) -> None:
        latencies.update(
            {k: {"latency_ms": t.latency_ms, "raw_ms": t.raw_ms} for k, t in timings.items() if k != REFERENCE}
        )
        drift = timings[REFERENCE].drift
        print(f"{len(latencies)} measured, reference model at {1 + drift:.2f} of its latency", file=sys.stderr)

    budget, size = Budget(60 * minutes), models_at_once(context, supernet, workload)
    visit = Visit(load, workload, budget, add, lambda: store.reference_ms(workload), size, least=len(subnets))
    visit.measure(shuffled(list(subnets), seed))
    return latencies


def main() -> None:
    """Measures in separate processes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1.0, help="Time limit of each process.")
    parser.add_argument("--seed", type=int, help="Measure in this process and print JSON.")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        print(json.dumps(measure_again(arguments.run, arguments.seed, arguments.minutes)))
        return
    command = [sys.executable, __file__, str(arguments.run), "--minutes", str(arguments.minutes), "--seed"]
    again = [
        json.loads(subprocess.run([*command, f"{100 + n}"], stdout=subprocess.PIPE, text=True, check=True).stdout)
        for n in range(arguments.processes)
    ]
    inside = total = raw = 0
    for point in Run(arguments.run).front():
        reported, error = point.values["latency_ms"], point.errors["latency_ms"]
        repeats = [process[point.key] for process in again]
        is_inside = [abs(repeat["latency_ms"] - reported) <= error for repeat in repeats]
        raw += sum(abs(repeat["raw_ms"] - reported) <= error for repeat in repeats)
        inside, total = inside + sum(is_inside), total + len(is_inside)
        marked = zip(repeats, is_inside, strict=True)
        values = " ".join(f"{repeat['latency_ms']:.3g}{'' if ok else '*'}" for repeat, ok in marked)
        print(f"{point.key}  reported {reported:.3g} ± {error:.2g} ms ({error / reported:.1%})  again {values}")
    print(f"within the reported interval: {inside} of {total} ({inside / total:.0%}); uncorrected for drift: {raw}")


if __name__ == "__main__":
    main()

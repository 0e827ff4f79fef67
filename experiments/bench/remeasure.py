"""How many latencies of a finished run's front lie within their stated interval when measured again.

    python experiments/bench/remeasure.py RUN [--processes 3]

Each process loads the exported models of the front anew and measures them in groups of its own, beside the parent.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from nas.runs.progress import quiet_libraries
from nas.runs.run import Run
from nas.stages.verify import export_and_reload
from nas.supernets.latency import time_models
from nas.supernets.load import load_supernet
from nas.tasks.context import TaskContext
from predictors.measurement.measure import groups
from predictors.measurement.timing import REFERENCE


def measured_again(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Key -> latency in milliseconds, on the scale of the run and as this process saw it."""
    quiet_libraries()
    run = Run(folder)
    context, store = TaskContext(run.recipe), run.store
    supernet, _ = load_supernet(run, context)
    found = {}
    for _, group in groups([point.subnet for point in run.front()], seed=seed):
        timed = time_models(
            context, supernet, {s.key: export_and_reload(run, context, supernet, s) for s in group}, store
        )
        found |= {s.key: {"latency_ms": timed[s.key].latency_ms, "raw_ms": timed[s.key].raw_ms} for s in group}
        print(f"{len(found)} measured, anchor at {1 + timed[REFERENCE].drift:.2f} of its reference", file=sys.stderr)
    return found


def main() -> None:
    """Measures in processes of their own and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--seed", type=int, help="Measure in this very process and print JSON.")
    given = parser.parse_args()
    if given.seed is not None:
        print(json.dumps(measured_again(given.run, given.seed)))
        return
    command = [sys.executable, __file__, str(given.run), "--seed"]
    again = [
        json.loads(subprocess.run([*command, f"{100 + n}"], stdout=subprocess.PIPE, text=True, check=True).stdout)
        for n in range(given.processes)
    ]
    inside = total = raw = 0
    for point in Run(given.run).front():
        stated, error = point.values["latency_ms"], point.errors["latency_ms"]
        found = [process[point.key] for process in again]
        held = [abs(one["latency_ms"] - stated) <= error for one in found]
        raw += sum(abs(one["raw_ms"] - stated) <= error for one in found)
        inside, total = inside + sum(held), total + len(held)
        figures = " ".join(f"{one['latency_ms']:.3g}{'' if ok else '*'}" for one, ok in zip(found, held, strict=True))
        print(f"{point.key}  stated {stated:.3g} ± {error:.2g} ms ({error / stated:.1%})  again {figures}")
    print(f"within the stated interval: {inside} of {total} ({inside / total:.0%}); uncorrected for drift: {raw}")


if __name__ == "__main__":
    main()

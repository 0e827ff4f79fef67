"""How well a search on Ray uses its workers: stand-in evaluations of one second at 1, 2, 4 and 8 workers.

    python -m experiments.bench.ray

The workers are processes of this machine; they sleep, so they need no cores of their own. `efficiency` is the share of
their time that workers spend evaluating, from when all of them run until the last evaluation begins; `overhead` is the
median time of a reused worker between two evaluations. Both are read from the workers' log.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import ray
from rich.table import Table

from experiments.bench.stand_in import stand_in_recipe, stand_in_search
from nas.runs.progress import console, quiet_libraries

SECONDS = 1.0
PER_WORKER = 15
RUNS = [*((n, "RandomSampler") for n in (1, 2, 4, 8)), (8, "SurrogateSampler")]


def spans(log: Path) -> dict[str, np.ndarray]:
    """Worker -> (evaluations, 2) begin and end of each, in seconds."""
    times_of: dict[str, list[float]] = {}
    for line in log.read_text().splitlines():
        _, _, process, at = line.split()
        times_of.setdefault(process, []).append(float(at))
    return {process: np.array(times).reshape(-1, 2) for process, times in times_of.items()}


def row(workers: int, sampler: str) -> list[str]:
    """One measured search."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = stand_in_recipe(PER_WORKER * workers, sampler=sampler, workers=workers)
        begin = time.time()
        stand_in_search(Path(folder), recipe, SECONDS, "auto", baselines=False)
        wall_s, spans_of = time.time() - begin, spans(Path(folder) / "evaluations.log")
    starts = [times[0, 0] for times in spans_of.values()]
    start, end = max(starts), max(times[-1, 0] for times in spans_of.values())
    busy = sum(
        np.clip(np.minimum(t[:, 1], end) - np.maximum(t[:, 0], start), 0, None).sum() for t in spans_of.values()
    )
    gaps = np.concatenate([times[1:, 0] - times[:-1, 1] for times in spans_of.values()])
    efficiency = busy / (len(spans_of) * (end - start))
    return [
        f"{workers}",
        sampler,
        f"{sum(map(len, spans_of.values()))}",
        f"{min(starts) - begin:.1f}",
        f"{start - min(starts):.1f}",
        f"{wall_s:.1f}",
        f"{efficiency:.3f}",
        f"{np.median(gaps):.4f}",
    ]


def main() -> None:
    """Prints the table."""
    quiet_libraries()
    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    table = Table(
        "workers", "sampler", "evaluations", "first after s", "all after s", "wall s", "efficiency", "overhead s"
    )
    for workers, sampler in RUNS:
        table.add_row(*row(workers, sampler))
        console.print(table)


if __name__ == "__main__":
    main()

"""Do ranks before the finish predict ranks after it? A dozen subnetworks of a run, each trained on alone.

    python experiments/bench/finished_ranks.py RUN --seconds 60

Around a half, a third and a fifth of the parent's predicted latency, it takes evaluated subnetworks of the search and
of its baselines within 15 % of that latency, evenly spread over their inherited metric. Each is extracted from the
supernet and trained with the finish's settings for so many CPU seconds. Prints a row for each, then Kendall's tau of
inherited and finished metric within each group of equal latency, and their mean. Set threads: `OMP_NUM_THREADS=1`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from by_hand import correct, distil
from scipy.stats import kendalltau

from nas.fronts.point import Point
from nas.runs.progress import quiet_libraries
from nas.runs.run import Run
from nas.studies.study import evaluated_points, open_studies
from nas.supernets.load import load_supernet
from nas.tasks.context import TaskContext

SPEEDUPS = (2.0, 3.0, 5.0)
TOLERANCE = 0.15
EACH = 4


def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU time to train each.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    run = Run(arguments.run)
    context = TaskContext(run.recipe)
    metric, teacher = run.recipe.primary_metric, context.load_model(run.parent).eval()
    parent_ms = float(run.target.load_predictor().predict([load_supernet(run, context)[0].parent])[0])
    points = [p for study in open_studies(run.study, run.recipe).values() for p in evaluated_points(study)]
    taus = []
    for speedup in SPEEDUPS:
        finished = []
        group = spread(list({p.key: p for p in points}.values()), metric, parent_ms / speedup)
        for point in group:
            model = load_supernet(run, context)[0].extract(point.subnet)
            inherited = np.mean(correct(model, context))
            distil(model, teacher, context, arguments.seconds, run.recipe.finish.learning_rate)
            finished.append(np.mean(correct(model, context)))
            speed = parent_ms / point.values["latency_ms"]
            print(
                f"{speedup:g}x: x{speed:4.2f}  search split {point.values[metric]:.4f}  held out {inherited:.4f} -> "
                f"{finished[-1]:.4f}  {point.subnet}",
                flush=True,
            )
        taus.append(float(kendalltau([p.values[metric] for p in group], finished).statistic))
        print(f"{speedup:g}x: Kendall's tau {taus[-1]:.2f}")
    print(f"mean {np.mean(taus):.2f}")


def spread(points: Sequence[Point], metric: str, latency_ms: float) -> list[Point]:
    """Points within 15 % of a latency, evenly spread over their metric, the best and the worst among them."""
    near = [p for p in points if abs(p.values["latency_ms"] / latency_ms - 1) <= TOLERANCE]
    near.sort(key=lambda point: point.values[metric])
    chosen = np.linspace(0, len(near) - 1, min(EACH, len(near))).round().astype(int)
    return [near[index] for index in dict.fromkeys(chosen.tolist())]


if __name__ == "__main__":
    main()

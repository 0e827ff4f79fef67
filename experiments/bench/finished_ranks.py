"""Do ranks before the finish predict ranks after it? Subnetworks of a run, scored by supernets, each trained on alone.

    python experiments/bench/finished_ranks.py RUN --supernets RUN OTHER ... --seconds 40 --steps 20

Around a half, a third and a fifth of the parent's predicted latency, it takes evaluated subnetworks of the search and
of its baselines within 15 % of that latency, evenly spread over their inherited metric. Each is extracted from the
run's supernet and trained as the finish stage does, for so many CPU seconds, and once more for so many steps. Prints
a row for each: its accuracy on the held-out split as inherited from each supernet, after the short finish, and after
the whole one. Then, for each of these guesses, Kendall's tau with the whole finish within each group of equal latency
and their mean, and what is lost by finishing the subnetwork that the guess puts first in place of the one that
finishes best, in points. Other runs need a supernet of the same parent and space. Set threads: `OMP_NUM_THREADS=1`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from by_hand import correct
from finishing import Finisher, finisher
from scipy.stats import kendalltau

from nas.fronts.point import Point
from nas.runs.progress import quiet_libraries
from nas.runs.run import Run
from nas.studies.study import evaluated_points, open_studies
from nas.supernets.load import load_supernet
from nas.tasks.context import TaskContext
from search_spaces import SubnetConfig

SPEEDUPS = (2.0, 3.0, 5.0)
TOLERANCE = 0.15


def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--supernets", nargs="+", type=Path, required=True, help="Runs whose supernets are compared.")
    parser.add_argument("--seconds", type=float, default=40.0, help="CPU time to train each.")
    parser.add_argument("--steps", type=int, default=20, help="Of the short finish.")
    parser.add_argument("--each", type=int, default=6, help="Subnetworks of each group.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    run = Run(arguments.run)
    context = TaskContext(run.recipe)
    parent = load_supernet(run, context)[0].parent
    parent_ms = float(run.target.load_predictor().predict([parent])[0])
    points = {p.key: p for study in open_studies(run.study, run.recipe).values() for p in evaluated_points(study)}
    groups = {
        speedup: spread(list(points.values()), run.recipe.primary_metric, parent_ms / speedup, arguments.each)
        for speedup in SPEEDUPS
    }
    names = [*(folder.parent.name + "/" + folder.name for folder in arguments.supernets), "short", "whole"]
    print("     " + "  ".join(names))
    tables = {}
    with finisher(run, context, [subnet for group in groups.values() for subnet in group]) as finish:
        for speedup, group in groups.items():
            tables[speedup] = np.array([row(finish, run, each, arguments, f"{speedup:g}x") for each in group])
    for column, name in enumerate(names[:-1]):
        taus = [float(kendalltau(table[:, column], table[:, -1]).statistic) for table in tables.values()]
        losses = [table[:, -1].max() - table[table[:, column].argmax(), -1] for table in tables.values()]
        print(
            f"{name}: tau {', '.join(f'{tau:.2f}' for tau in taus)}, mean {np.mean(taus):.2f}; "
            f"lost by its choice {', '.join(f'{100 * loss:.1f}' for loss in losses)} points"
        )


def row(finish: Finisher, run: Run, subnet: SubnetConfig, arguments: argparse.Namespace, group: str) -> list[float]:
    """Held-out accuracies of a subnetwork: inherited from each supernet, after a short finish, after the whole one."""
    context, result = finish.context, []
    for folder in arguments.supernets:
        result.append(accuracy(load_supernet(Run(folder), context)[0].extract(subnet).eval(), context))
    for length in ({"steps": arguments.steps}, {"seconds": arguments.seconds}):
        model = load_supernet(run, context)[0].extract(subnet)
        finish.train(model, subnet, finish.settings(), **length)
        result.append(accuracy(model, context))
    print(f"{group:4} {'  '.join(f'{value:.4f}' for value in result)}  {subnet}", flush=True)
    return result


def accuracy(model: object, context: TaskContext) -> float:
    """On the held-out split."""
    return float(np.mean(correct(model, context)))


def spread(points: Sequence[Point], metric: str, latency_ms: float, each: int) -> list[SubnetConfig]:
    """Subnetworks within 15 % of a latency, evenly spread over their metric, the best and the worst among them."""
    near = [p for p in points if abs(p.values["latency_ms"] / latency_ms - 1) <= TOLERANCE]
    near.sort(key=lambda point: point.values[metric])
    chosen = np.linspace(0, len(near) - 1, min(each, len(near))).round().astype(int)
    return [near[index].subnet for index in dict.fromkeys(chosen.tolist())]


if __name__ == "__main__":
    main()

"""Where a finish should start, and what it should learn, at equal total time: the finished subnetworks of a run again.

    python experiments/bench/finish_starts.py RUN --supernets RUN OTHER ... --seconds 80

Each subnetwork that the run finished is trained from slices of the parent in order of importance that compensate
nothing, and from each supernet: with the parent's logits and hidden states, from the first supernet also with the
logits alone. Each has so many CPU seconds, less its share of those that the supernet took (`by_hand.py` keeps them).
Prints a row for each start and loss: accuracy of each on the held-out split as inherited and after the finish, and the
means. Other runs need a supernet of the same parent and space. Set threads: `OMP_NUM_THREADS=1`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from by_hand import correct
from finishing import WEIGHT, finisher

from nas.runs.finished import read_finished
from nas.runs.progress import quiet_libraries
from nas.runs.run import Run
from nas.supernets.load import load_ordered_parent, load_supernet
from nas.tasks.context import TaskContext
from search_spaces import SubnetConfig

Start = Callable[[SubnetConfig], Any]
"""Extracts a subnetwork."""


def main() -> None:
    """Parses the command line and prints a row for each start and loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--supernets", nargs="*", type=Path, default=[], help="Runs whose supernets are compared.")
    parser.add_argument(
        "--seconds", type=float, default=80.0, help="CPU time of each, with its share of the supernet."
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    run = Run(arguments.run)
    context = TaskContext(run.recipe)
    subnets = [finished.subnet for finished in read_finished(run) if finished.source == "search"]
    starts: dict[str, tuple[float, Start]] = {"slices of the parent": (0.0, of_parent(run, context))}
    for folder in arguments.supernets:
        starts[f"supernet of {folder}"] = (supernet_seconds(folder) / len(subnets), of_supernet(Run(folder), context))
    with finisher(run, context, subnets) as finish:
        for number, (name, (spent, extract)) in enumerate(starts.items()):
            for weight in (0.0, WEIGHT) if number == 1 else (WEIGHT,):
                inherited, finished, steps = [], [], []
                for subnet in subnets:
                    model = extract(subnet).eval()
                    inherited.append(np.mean(correct(model, context)))
                    settings = finish.settings(hidden_states=weight)
                    steps.append(finish.train(model, subnet, settings, seconds=arguments.seconds - spent))
                    finished.append(np.mean(correct(model, context)))
                loss = "and hidden states" if weight else "logits alone"
                accuracies = f"{as_text(inherited)} -> {as_text(finished)}"
                print(f"{name}, {loss}: {spent:.0f} s before, steps {steps}, {accuracies}", flush=True)


def of_parent(run: Run, context: TaskContext) -> Start:
    """Extracts slices of the parent without the statistics by which they would compensate."""

    def extract(subnet: SubnetConfig) -> Any:
        parent = load_ordered_parent(run, context)[0]
        parent.calibration = None
        return parent.extract(subnet)

    return extract


def of_supernet(run: Run, context: TaskContext) -> Start:
    """Extracts from the supernet of a run."""
    return lambda subnet: load_supernet(run, context)[0].extract(subnet)


def supernet_seconds(folder: Path) -> float:
    """CPU seconds that a run spent on its supernet."""
    return float(json.loads((folder / "cpu_seconds.json").read_text())["supernet"])


def as_text(values: list[Any]) -> str:
    """Values and their mean."""
    return f"{', '.join(f'{value:.4f}' for value in values)} (mean {np.mean(values):.4f})"


if __name__ == "__main__":
    main()

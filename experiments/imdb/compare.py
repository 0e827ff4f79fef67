"""Compares runs over all dimensions with the same runs restricted, at equal evaluations and seeds.

python experiments/imdb/compare.py RUN RESTRICTED [RUN RESTRICTED ...]      # folders that `nas search` has finished
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from rich.console import Console
from rich.table import Table

from nas.fronts.pareto import hypervolume
from nas.runs.run import Run
from search_spaces import SubnetConfig

REFERENCE = np.array([0.5, 1.0])
"""Error of random guessing, latency of the parent: points beyond these do not count."""
NAMES = ("attention", "attention_rank", "mlp_rank", "bits")
"""Fields whose choices are counted; of widths, the mean is shown."""


def costs(run: Run) -> np.ndarray:
    """Errors and latency over the parent's of each point of a verified front, (points, 2)."""
    parent = next(point for point in run.verified_points() if point.source == "parent").values["latency_ms"]
    front = [(1 - point.values["accuracy"], point.values["latency_ms"] / parent) for point in run.front().points]
    return np.array(front, dtype=float)


def choices(subnets: Sequence[SubnetConfig]) -> Table:
    """The choices in each layer of the parent, over many subnetworks."""
    table = Table("layer", "kept", "heads", "neurons", *NAMES)
    for layer in range(1 + max(subnet.layers[-1] for subnet in subnets)):
        kept = [(subnet, subnet.layers.index(layer)) for subnet in subnets if layer in subnet.layers]
        widths = [
            f"{mean(getattr(subnet, field)[position] for subnet, position in kept):.0f}" if kept else ""
            for field in ("num_attention_heads", "intermediate_size")
        ]
        counts = [Counter(getattr(subnet, field)[position] for subnet, position in kept) for field in NAMES]
        cells = [", ".join(f"{name} x {times}" for name, times in count.most_common()) for count in counts]
        table.add_row(str(layer), f"{len(kept)} of {len(subnets)}", *widths, *cells)
    return table


def main() -> None:
    """Prints the hypervolumes, then the choices in each layer of the fronts over all dimensions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    runs = [Run(folder) for folder in parser.parse_args().runs]
    table = Table("run", "evaluations", "seed", "on the front", "hypervolume")
    for run in runs:
        front, recipe = costs(run), run.recipe
        row = (recipe.search.evaluations, recipe.seed, len(front), f"{hypervolume(front, REFERENCE):.4f}")
        table.add_row(run.name, *map(str, row))
    subnets = [point.subnet for run in runs[::2] for point in run.front().points]
    sizes = Counter(subnet.hidden_size for subnet in subnets)
    Console().print(table, choices(subnets), "hidden_size", sizes)


if __name__ == "__main__":
    main()

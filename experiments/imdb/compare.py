"""Compares a run with all dimensions open with the same one restricted, at equal evaluations and seed.

python experiments/imdb/compare.py RUN RESTRICTED      # two folders that `nas search` has finished
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from nas.fronts.pareto import hypervolume
from nas.run import Run

REFERENCE = np.array([0.5, 1.0])
"""Errors of a coin, latency of the parent: what a front must beat to count at all."""


def costs(run: Run) -> np.ndarray:
    """Errors and latency over the parent's of each point of a verified front, (points, 2)."""
    parent = next(point for point in run.verified_points() if point.source == "parent").values["latency_ms"]
    front = [(1 - point.values["accuracy"], point.values["latency_ms"] / parent) for point in run.front().points]
    return np.array(front, dtype=float)


def patterns(run: Run) -> dict[int, Counter[str]]:
    """Layer of the parent -> how often each attention pattern stands there on the front, ``dropped`` included."""
    subnets = [point.subnet for point in run.front().points]
    kept = [dict(zip(subnet.layers, subnet.attention, strict=True)) for subnet in subnets]
    last = max(subnet.layers[-1] for subnet in subnets)
    return {layer: Counter(layers.get(layer, "dropped") for layers in kept) for layer in range(last + 1)}


def main() -> None:
    """Prints both hypervolumes, then which layers of the first front chose what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs=2)
    runs = [Run(folder) for folder in parser.parse_args().runs]
    table = Table("run", "evaluations", "seed", "on the front", "hypervolume")
    for run in runs:
        found, recipe = costs(run), run.recipe
        row = (recipe.search.evaluations, recipe.seed, len(found), f"{hypervolume(found, REFERENCE):.4f}")
        table.add_row(run.name, *map(str, row))
    chosen = Table("layer", "attention on the front")
    for layer, counts in patterns(runs[0]).items():
        chosen.add_row(str(layer), ", ".join(f"{text} x {n}" for text, n in counts.most_common()))
    Console().print(table, chosen)


if __name__ == "__main__":
    main()

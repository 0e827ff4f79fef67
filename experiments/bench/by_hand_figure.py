"""Draws what `by_hand.py` found: accuracy against speed of the finished models and of dropped layers, as one SVG file.

    python experiments/bench/by_hand_figure.py FILE.svg "Banking77=runs/by-hand/banking77" "SST-2=runs/by-hand/sst2"

Each argument is a panel: its title and the folder that was ``--run``. Points are means over its seeds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from by_hand import INT8, OURS, PARENT, RIVALS, Row, measured_rows

WIDTH, HEIGHT, LEFT, TOP, GAP = 250, 190, 46, 34, 62
COLOURS = {OURS: "#0b6e4f", RIVALS[0]: "#c8553d", PARENT: "#555555"}
TICKS = (1, 2, 3, 5, 8, 12, 20)
Means = dict[tuple[str, str], list[tuple[float, float]]]
"""Name and precision -> speed over the parent's, accuracy of each model."""


def main() -> None:
    """Parses the command line and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("panels", nargs="+", help="TITLE=FOLDER")
    arguments = parser.parse_args()
    named = dict(panel.split("=", 1) for panel in arguments.panels)
    panels = {title: means([measured_rows(f) for f in sorted(Path(p).glob("seed-*"))]) for title, p in named.items()}
    arguments.file.write_text("\n".join(picture(panels)) + "\n")


def means(seeds: Sequence[Sequence[Row]]) -> Means:
    """Means over seeds of the models of each kind."""
    found: dict[tuple[str, str, int], list[Row]] = {}
    for rows in seeds:
        for row in rows:
            found.setdefault((row.name, row.precision, row.budget), []).append(row)
    points: Means = {}
    for (name, precision, _), rows_of in found.items():
        speed = 1 / np.mean([row.ratio for row in rows_of])
        points.setdefault((name, precision), []).append((float(speed), float(np.mean([row.hits for row in rows_of]))))
    return {key: sorted(values) for key, values in points.items()}


def picture(panels: dict[str, Means]) -> Iterator[str]:
    """Lines of the SVG file."""
    width, height = LEFT + len(panels) * (WIDTH + GAP), TOP + HEIGHT + 92
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    yield '<g font-size="12">'
    yield f'<rect width="{width}" height="{height}" fill="white"/>'
    for number, (title, points) in enumerate(panels.items()):
        yield from panel(title, points, LEFT + number * (WIDTH + GAP))
    labels = {OURS: "finished by paretoformer", RIVALS[0]: "layers dropped evenly", PARENT: "parent"}
    for number, (name, label) in enumerate(labels.items()):
        x, y = LEFT + 200 * number, height - 12
        yield f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{COLOURS[name]}"/><text x="{x + 9}" y="{y}">{label}</text>'
    yield f'<text x="{LEFT + 200 * len(labels)}" y="{height - 12}">hollow: int8 layers</text>'
    yield "</g></svg>"


def panel(title: str, points: Means, x0: float) -> Iterator[str]:
    """One task: speed on a logarithmic axis, accuracy."""
    values = [value for part in points.values() for value in part]
    fastest, low, high = max(s for s, _ in values) * 1.1, min(a for _, a in values), max(a for _, a in values)
    low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)

    def place(speed: float, accuracy: float) -> tuple[float, float]:
        across = WIDTH * math.log(speed / 0.9) / math.log(fastest / 0.9)
        return x0 + across, TOP + HEIGHT * (high - accuracy) / (high - low)

    yield f'<text x="{x0}" y="{TOP - 12}" font-weight="bold">{title}</text>'
    yield f'<path d="M{x0} {TOP}V{TOP + HEIGHT}H{x0 + WIDTH}" fill="none" stroke="#999"/>'
    for tick in (tick for tick in TICKS if tick < fastest):
        x, _ = place(tick, low)
        yield f'<text x="{x:.0f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{tick}x</text>'
    for accuracy in np.linspace(low, high, 5)[1:-1]:
        _, y = place(1, accuracy)
        yield f'<text x="{x0 - 5}" y="{y + 4:.0f}" text-anchor="end">{accuracy:.3f}</text>'
    yield f'<text x="{x0 + WIDTH / 2}" y="{TOP + HEIGHT + 36}" text-anchor="middle">times as fast as the parent</text>'
    for (name, precision), part in points.items():
        if name not in COLOURS:
            continue
        places = [place(*point) for point in part]
        fill = "white" if precision == INT8 else COLOURS[name]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline points="{line}" fill="none" stroke="{COLOURS[name]}" stroke-opacity="0.5"/>'
        yield from (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{COLOURS[name]}"/>' for x, y in places
        )


if __name__ == "__main__":
    main()

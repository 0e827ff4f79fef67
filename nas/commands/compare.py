"""Compare: fronts of several runs on one plot, with hypervolumes from one reference and what equal quality costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nas.fronts.front import ParetoFront, reference_point
from nas.recipe.objectives import format_value
from nas.runs.files import write_text
from nas.runs.run import Run
from search_spaces import InputError

if TYPE_CHECKING:
    from rich.table import Table

LEVELS = 6
"""Levels of quality at which costs are compared."""


def compare_runs(runs: Sequence[Run], out: Path) -> list[Table]:
    """Writes the plot and returns two tables: hypervolumes, and attainment.

    Raises:
        InputError: If there are fewer than two runs, or their objectives, workload, device or split differ.
    """
    _check(runs)
    fronts = {_name(run, runs): run.front() for run in runs}
    write_text(out, plot(fronts))
    return [hypervolume_table(fronts), attainment_table(fronts)]


def _check(runs: Sequence[Run]) -> None:
    if len(runs) < 2:
        raise InputError(f"a comparison needs at least two runs, but got {len(runs)}.")
    first = runs[0]
    same = {
        "objectives": lambda run: run.recipe.objectives,
        "workload": lambda run: run.recipe.workload,
        "device": lambda run: run.device,
        "task.test": lambda run: Path(run.recipe.task.test).name,
    }
    for name, of in same.items():
        for run in runs[1:]:
            if of(run) != of(first):
                raise InputError(
                    f"runs compare only with the same `{name}`, but `{first.folder}` has {of(first)} and "
                    f"`{run.folder}` {of(run)}."
                )


def _name(run: Run, runs: Sequence[Run]) -> str:
    return run.name if sum(run.name == other.name for other in runs) == 1 else str(run.folder)


def hypervolume_table(fronts: Mapping[str, ParetoFront]) -> Table:
    """Points, best quality and hypervolume of each front, the reference a tenth beyond the worst of all."""
    from rich.table import Table

    some = next(iter(fronts.values()))
    reference = reference_point([point for front in fronts.values() for point in front], some.objectives)
    where = ", ".join(f"{name} {format_value(name, value)}" for name, value in reference.items())
    table = Table("run", "points", f"best {some.primary_metric}", "hypervolume", box=None, padding=(0, 2, 0, 0))
    table.caption, table.caption_justify = f"Hypervolume from {where}.", "left"
    for name, front in fronts.items():
        best = front.best(some.primary_metric) if len(front) else None
        quality = "–" if best is None else format_value(some.primary_metric, best.values[some.primary_metric])
        table.add_row(name, str(len(front)), quality, f"{front.hypervolume(reference):.4g}")
    return table


def attainment(front: ParetoFront, quality: str, cost: str, level: float) -> float:
    """The least cost at which a front attains a level of quality; infinity if it never does.

    The boundary of what a front attains is its attainment surface (Fonseca & Fleming, PPSN 1996).
    """
    up = front.objectives[quality] == "maximize"
    attained = [p.values[cost] for p in front if (p.values[quality] >= level if up else p.values[quality] <= level)]
    return min(attained, default=float("inf"))


def attainment_table(fronts: Mapping[str, ParetoFront]) -> Table:
    """Levels of quality, and what each front costs at them at least."""
    from rich.table import Table

    some = next(iter(fronts.values()))
    quality, cost = some.primary_metric, cost_of(some)
    values = [point.values[quality] for front in fronts.values() for point in front]
    levels = np.linspace(min(values), max(values), LEVELS)
    table = Table(f"{quality} attained", *fronts, box=None, padding=(0, 2, 0, 0))
    table.caption, table.caption_justify = f"The least {cost} at which each front attains it.", "left"
    for level in levels if some.objectives[quality] == "maximize" else levels[::-1]:
        costs = [attainment(front, quality, cost, level) for front in fronts.values()]
        cells = [format_value(cost, value) if np.isfinite(value) else "never" for value in costs]
        table.add_row(format_value(quality, float(level)), *cells)
    return table


def cost_of(front: ParetoFront) -> str:
    """The first objective that is not the quality."""
    return next((name for name in front.objectives if name != front.primary_metric), front.primary_metric)


def plot(fronts: Mapping[str, ParetoFront]) -> str:
    """All fronts as one offline HTML page, with standard errors."""
    import plotly.graph_objects as go

    some = next(iter(fronts.values()))
    x, y = cost_of(some), some.primary_metric
    figure = go.Figure()
    for name, front in fronts.items():
        xs, ys = ([point.values[axis] for point in front] for axis in (x, y))
        bars = [{"type": "data", "array": [p.errors.get(axis, 0.0) for p in front], "thickness": 1} for axis in (x, y)]
        text = [f"{point.key}<br>{point.subnet}" for point in front]
        line = {"shape": "hv" if some.objectives[x] == "minimize" else "vh"}
        figure.add_scatter(
            x=xs, y=ys, error_x=bars[0], error_y=bars[1], name=name, text=text, line=line, mode="lines+markers"
        )
    figure.update_layout(template="simple_white", xaxis_title=x, yaxis_title=y, hovermode="closest")
    return str(figure.to_html(include_plotlyjs=True, full_html=True))

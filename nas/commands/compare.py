"""`nas compare`: the fronts of several runs on one plot, their hypervolumes, and their cost at equal metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nas.fronts.front import ParetoFront, reference_point
from nas.recipe.objectives import format_value, is_cost
from nas.recipe.text import split_source
from nas.runs.files import digest, write_text
from nas.runs.run import Run
from search_spaces import InputError

if TYPE_CHECKING:
    from rich.table import Table

LEVELS = 6
"""Levels of the metric at which costs are compared."""


def compare_runs(runs: Sequence[Run], out: Path) -> list[Table]:
    """Writes the plot and returns two tables: hypervolumes and attainment.

    Raises:
        InputError: If there are fewer than two runs, or their objectives, workload, device or split differ.
    """
    _check(runs)
    fronts = {_name(run, runs): run.front() for run in runs}
    write_text(out, plot(fronts))
    return [hypervolume_table(fronts), attainment_table(fronts)]


def _check(runs: Sequence[Run]) -> None:
    if len(runs) < 2:
        raise InputError(f"a comparison needs at least two runs, but got {len(runs)}; add a run folder.")
    first = runs[0]
    same = {
        "objectives": lambda run: run.recipe.objectives,
        "workload": lambda run: ", ".join(f"{target.name} {target.workload}".strip() for target in run.targets),
        "device": lambda run: ", ".join(f"{target.name} {target.device}".strip() for target in run.targets),
        "task.test": lambda run: _examples(run.recipe.task.test),
        "task.retrieval": lambda run: _files(run.recipe.task.retrieval),
    }
    for name, value in same.items():
        for run in runs[1:]:
            if value(run) != value(first):
                raise InputError(
                    f"runs to compare must have the same `{name}`, but `{first.folder}` has {value(first)} and "
                    f"`{run.folder}` {value(run)}; leave one out."
                )


def _examples(source: str) -> str:
    """What tells one split from another: the name and content of a local file, else the source as it is written."""
    name, split = split_source(source)
    file = Path(name)
    return f"{file.name}:{split} with the content {digest(file)}" if file.is_file() else source


def _files(folder: str | None) -> dict[str, str]:
    """The content of each file of a folder, by its path in there."""
    path = Path(folder) if folder else None
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path else []
    return {str(file.relative_to(folder or "")): digest(file) for file in files}


def _name(run: Run, runs: Sequence[Run]) -> str:
    return run.name if sum(run.name == other.name for other in runs) == 1 else str(run.folder)


def hypervolume_table(fronts: Mapping[str, ParetoFront]) -> Table:
    """Points, best metric and hypervolume of each front; the reference point is 10 % beyond the worst of all."""
    from rich.table import Table

    first = next(iter(fronts.values()))
    metric = first.primary_metric
    reference = reference_point([point for front in fronts.values() for point in front], first.objectives)
    reference_text = ", ".join(f"{name} {format_value(name, value)}" for name, value in reference.items())
    table = Table("run", "points", f"best {metric}", "hypervolume", box=None, padding=(0, 2, 0, 0))
    table.caption, table.caption_justify = f"Reference point of the hypervolumes: {reference_text}.", "left"
    for name, front in fronts.items():
        best = "–" if not len(front) else format_value(metric, front.best(metric).values[metric])
        table.add_row(name, str(len(front)), best, f"{front.hypervolume(reference):.4g}")
    return table


def attainment(front: ParetoFront, metric: str, cost: str, level: float) -> float:
    """The lowest cost (of a throughput, the highest) at which a front attains a level of a metric; else infinity.

    All levels together are the attainment surface of the front (Fonseca & Fleming, PPSN 1996).
    """
    sign = 1 if front.objectives[metric] == "maximize" else -1
    costs = [point.values[cost] for point in front if sign * point.values[metric] >= sign * level]
    best = max if front.objectives.get(cost) == "maximize" else min
    return best(costs, default=float("inf"))


def attainment_table(fronts: Mapping[str, ParetoFront]) -> Table:
    """Levels of the metric, and the lowest cost of each front at them."""
    from rich.table import Table

    first = next(iter(fronts.values()))
    metric, cost = first.primary_metric, first_cost(first)
    values = [point.values[metric] for front in fronts.values() for point in front]
    levels = np.linspace(min(values), max(values), LEVELS)
    table = Table(f"{metric} attained", *fronts, box=None, padding=(0, 2, 0, 0))
    table.caption, table.caption_justify = f"The lowest {cost} at which each front attains it.", "left"
    for level in levels if first.objectives[metric] == "maximize" else levels[::-1]:
        costs = [attainment(front, metric, cost, level) for front in fronts.values()]
        cells = [format_value(cost, value) if np.isfinite(value) else "never" for value in costs]
        table.add_row(format_value(metric, float(level)), *cells)
    return table


def first_cost(front: ParetoFront) -> str:
    """The first objective that is a cost, else the first that is not the primary metric."""
    others = [name for name in front.objectives if name != front.primary_metric]
    return next((name for name in others if is_cost(name)), next(iter(others), front.primary_metric))


def plot(fronts: Mapping[str, ParetoFront]) -> str:
    """All fronts on one offline HTML page, with error bars."""
    import plotly.graph_objects as go

    first = next(iter(fronts.values()))
    x, y = first_cost(first), first.primary_metric
    figure = go.Figure()
    for name, front in fronts.items():
        xs, ys = ([point.values[axis] for point in front] for axis in (x, y))
        bars = [{"type": "data", "array": [p.errors.get(axis, 0.0) for p in front], "thickness": 1} for axis in (x, y)]
        text = [f"{point.key}<br>{point.subnet}" for point in front]
        line = {"shape": "hv" if first.objectives[x] == "minimize" else "vh"}
        figure.add_scatter(
            x=xs, y=ys, error_x=bars[0], error_y=bars[1], name=name, text=text, line=line, mode="lines+markers"
        )
    figure.update_layout(template="simple_white", xaxis_title=x, yaxis_title=y, hovermode="closest")
    return str(figure.to_html(include_plotlyjs=True, full_html=True))

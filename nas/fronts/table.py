"""The table of a front, for the terminal and as HTML for notebooks and the report."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nas.recipe.objectives import FINETUNED_SUFFIX, format_value

if TYPE_CHECKING:
    from rich.table import Table

    from nas.fronts.front import ParetoFront
    from nas.fronts.point import Point

KNEE = " ◀"
UNDECIDED = "≈"
FINISHED = " ●"
SUBNETWORK_WIDTH = 25
"""Columns left for the subnetwork of 80; a longer text is wrapped at its commas."""
TERMINAL_COLUMNS = ("size_mb",)
"""Costs that the terminal shows next to the objectives; `to_pandas` and the report show all."""


def rich_table(front: ParetoFront) -> Table:
    """The table for the terminal: key, objectives, size and subnetwork; 80 columns suffice."""
    from rich.table import Table

    names = [
        n for n in front.value_names if n in (*front.objectives, *TERMINAL_COLUMNS) or n.endswith(FINETUNED_SUFFIX)
    ]
    table = Table(box=None, padding=(0, 2, 0, 0), caption=_caption(front), caption_justify="left")
    table.add_column("key", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    parts = list(dict.fromkeys(part for point in front for part in point.subnet.parts))
    table.add_column(" · ".join(parts) or "subnetwork", overflow="fold")
    for point, (*cells, _) in zip(front, _rows(front, names), strict=True):
        subnetwork = " · ".join(point.subnet.parts.get(part, "-") for part in parts)
        if len(subnetwork) > SUBNETWORK_WIDTH:
            subnetwork = subnetwork.replace(",", ", ")
        table.add_row(*cells, subnetwork, style="bold" if KNEE in cells[0] else None)
    return table


def html_table(front: ParetoFront) -> str:
    """The table as HTML, with every metric and cost; ``data-key`` of a row is its key."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("key", *front.value_names, "subnetwork"))
    body = "".join(
        f'<tr data-key="{point.key}">{"".join(f"<td>{html.escape(cell)}</td>" for cell in row)}</tr>'
        for point, row in zip(front, _rows(front, front.value_names), strict=True)
    )
    caption = f"<caption>{html.escape(_caption(front))}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_baselines(rows: Sequence[Point], names: Sequence[str]) -> str:
    """The models that a front is compared with, as an HTML table of these metrics and costs; empty without any."""
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("compared with", *names, "subnetwork"))
    cells = [[point.origin, *(_cell(point, name) for name in names), str(point.subnet)] for point in rows]
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _rows(front: ParetoFront, names: Sequence[str]) -> list[list[str]]:
    """One row of text per point: its key, these values, its subnetwork."""
    knee = front.knee() if len(front) else None
    return [
        [
            point.key + FINISHED * point.finished + KNEE * (point is knee),
            *(_cell(point, name) for name in names),
            str(point.subnet),
        ]
        for point in front
    ]


def _cell(point: Point, name: str) -> str:
    """A value with its spread, marked if it cannot be told apart from its bound."""
    mark = UNDECIDED if name in point.undecided else ""
    return mark + format_value(name, point.values.get(name, math.nan), point.errors.get(name))


def _caption(front: ParetoFront) -> str:
    """What the mark of the knee and the values mean."""
    if not len(front):
        return "The front is empty: no feasible point."
    if any(point.predicted for point in front):
        how = "latency predicted (measure it with nas profile --export), metrics on the held-out split"
    elif all(point.measured for point in front):
        how = "latency measured on the exported model, metrics on the held-out split"
    else:
        measured = f"{sum(point.measured for point in front)} of {len(front)} measured"
        how = f"latency predicted, metrics on the search split ({measured})"
    tuned = (
        f" {FINETUNED_SUFFIX}: after `nas finetune`."
        if any(n.endswith(FINETUNED_SUFFIX) for n in front.value_names)
        else ""
    )
    if any(point.undecided for point in front):
        tuned += f" {UNDECIDED} cannot be told apart from its bound in this noise."
    finished = (
        f" {FINISHED.strip()} finished: trained on after the search." if any(point.finished for point in front) else ""
    )
    return f"{KNEE.strip()} knee.{finished} {how[0].upper()}{how[1:]}.{tuned}"

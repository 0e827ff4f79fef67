"""Writes report.html: one offline file with the front, its baselines and every evaluated subnetwork."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from nas.fronts.baselines import baseline_rows
from nas.fronts.front import ParetoFront
from nas.fronts.point import PARENT_RUNTIMES, Point
from nas.fronts.table import html_baselines
from nas.recipe.objectives import Bound, format_value
from nas.runs.files import write_text

CHARTS = "plotly-gl2d.min.js"
"""plotly.js 3.7.0 (MIT), npm's ``plotly.js-gl2d-dist-min`` unchanged: only the chart types that the report uses. It is
a third of the size of plotly.js and starts in half the time."""


def write_report(
    path: Path,
    *,
    title: str,
    front: ParetoFront,
    verified: Sequence[Point],
    evaluated: Sequence[Point],
    constraints: dict[str, Bound],
    facts: dict[str, str],
    notes: Sequence[str],
    export_command: str,
    first: str = "",
    workloads: Mapping[str, Mapping[str, str]] | None = None,
    earlier: Sequence[Point] = (),
    history: dict[str, Any] | None = None,
) -> None:
    """Writes the report atomically.

    Args:
        path: The HTML file to write or replace.
        title: Heading, e.g. the model and the run.
        front: The verified front.
        verified: Measured points of every source (search, baselines, parent), with or without those on the front.
        evaluated: Predicted points of every source; a page with 5,000 still opens quickly.
        constraints: Metric or cost -> bound, drawn as a dashed line.
        facts: Name -> text, such as splits, seed, hypervolumes.
        notes: Sentences below the table, e.g. warnings of the run.
        export_command: The command that exports a point, with ``{key}`` in place of its key.
        first: What the page says first, such as that the front does not beat the parent with int8 layers.
        workloads: Name of a workload -> facts about it. The page switches between several; an only one has no name.
        earlier: The front from before the run went on with another recipe.
        history: See `nas.reports.history.history`; None leaves out its sections.
    """
    workloads = workloads or {}
    data = _data(front, verified, evaluated, constraints, export_command, earlier)
    data["fronts"] = {name: [point.key for point in front.under(name)] for name in _names(front, workloads)}
    parts = {
        "title": html.escape(title),
        "first": f'<p class="lead">{html.escape(first)}</p>' if first else "",
        "facts": "".join(_facts_html(own, name) for name, own in workloads.items()) + _facts_html(facts),
        "constraints": _constraints_html(constraints),
        "table": front._repr_html_() + html_baselines(baseline_rows(front, verified), front.value_names),
        "notes": "".join(f"<li>{html.escape(note)}</li>" for note in notes),
        "data": _embed({**data, "workloads": list(workloads) or [""], "history": history or {}}),
        "plotly": _page(CHARTS),
        "style": _page("report.css"),
        "script": _page("report.js") + _page("report_history.js"),
    }
    template = _page("report.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template))


def _names(front: ParetoFront, workloads: Mapping[str, Any]) -> list[str]:
    """The workloads that have a front of their own: whose costs are objectives."""
    return [name for name in workloads if any(objective.endswith(f"@{name}") for objective in front.objectives)]


def _page(name: str) -> str:
    return files("nas.reports").joinpath("page", name).read_text(encoding="utf-8")


def _data(
    front: ParetoFront,
    verified: Sequence[Point],
    evaluated: Sequence[Point],
    constraints: dict[str, Bound],
    export_command: str,
    earlier: Sequence[Point],
) -> dict[str, Any]:
    """The data that the script of the page reads."""
    points = [*front, *verified, *evaluated, *earlier]
    known = {name for point in points for name in point.values} - set(front.objectives)
    on_front = {point.key for point in front}
    series = {
        "evaluated": ("evaluated", evaluated),
        "off": ("verified, not on the front", _off_front(verified, on_front)),
        "uniform": ("uniform baseline", _baseline("uniform", front, verified, evaluated)),
        "random": ("random baseline", _baseline("random", front, verified, evaluated)),
        "layer-drop": ("layer dropping", _of_source("layer-drop", verified, evaluated)),
        "int8": (
            "int8 twins, parent in another runtime",
            [p for p in verified if p.source in ("int8", "parent-int8", *PARENT_RUNTIMES)],
        ),
        "earlier": ("earlier front", list(earlier)),
        "front": ("front", list(front)),
        "parent": ("parent", _of_source("parent", verified, evaluated)[:1]),
    }
    return {
        "objectives": front.objectives,
        "value_names": [*front.objectives, *sorted(known)],
        "constraints": [
            {"name": name, "op": part.op, "value": part.value, "text": str(part)}
            for name, bound in constraints.items()
            for part in bound.parts
        ],
        "series": [
            {"kind": kind, "name": f"{name} ({_provenance(shown)})", "points": [_point(p) for p in shown]}
            for kind, (name, shown) in series.items()
            if shown
        ],
        "layers": max((point.subnet.layers[-1] + 1 for point in points), default=0),
        "selected": front.knee().key if len(front) else None,
        "export_command": export_command,
    }


def _of_source(source: str, verified: Sequence[Point], evaluated: Sequence[Point]) -> list[Point]:
    """The verified points of a source, or its evaluated points if none was verified."""
    return [p for p in verified if p.source == source] or [p for p in evaluated if p.source == source]


def _off_front(verified: Sequence[Point], on_front: set[str]) -> list[Point]:
    return [p for p in verified if p.key not in on_front and p.source == "search"]


def _baseline(source: str, front: ParetoFront, verified: Sequence[Point], evaluated: Sequence[Point]) -> list[Point]:
    return list(ParetoFront.of(_of_source(source, verified, evaluated), front.objectives))


def _provenance(points: Sequence[Point]) -> str:
    measured = sum(point.measured for point in points)
    return "measured" if measured == len(points) else "measured and predicted" if measured else "predicted"


def _point(point: Point) -> dict[str, Any]:
    """A point with its values as numbers and as text; key-value heads only if they are grouped."""
    text = {name: format_value(name, value, point.errors.get(name)) for name, value in point.values.items()}
    subnet = point.subnet.to_dict()
    if subnet["num_key_value_heads"] == subnet["num_attention_heads"]:
        del subnet["num_key_value_heads"]
    return {**point.to_dict(), "subnet": subnet, "text": text}


def _embed(data: dict[str, Any]) -> str:
    """JSON that is safe inside a ``<script>`` element: no string in it can close the element."""
    text = json.dumps(_finite(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(data: Any) -> Any:
    """The data with floats rounded to seven digits and null in place of NaN and infinities, which JSON lacks."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float):
        return float(f"{data:.7g}") if math.isfinite(data) else None
    return data


def _facts_html(facts: Mapping[str, str], workload: str = "") -> str:
    """Facts as a list of terms; those about one of several workloads carry its name."""
    tag = f' data-workload="{html.escape(workload)}"' if workload else ""
    ending = f" · {workload}" if workload else ""
    return "".join(
        f"<div{tag}><dt>{html.escape(f'{name}{ending}')}</dt><dd>{html.escape(text)}</dd></div>"
        for name, text in facts.items()
    )


def _constraints_html(constraints: dict[str, Bound]) -> str:
    if not constraints:
        return "none"
    return ", ".join(f"<code>{html.escape(f'{name} {bound}')}</code>" for name, bound in constraints.items())

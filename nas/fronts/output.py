"""Filters and sorts a front, and writes it as CSV, JSON or Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from nas.fronts.front import ParetoFront
from nas.fronts.point import Point
from nas.recipe.objectives import DIRECTIONS, FINETUNED_SUFFIX, format_value
from search_spaces.errors import InputError, did_you_mean


def filter_front(
    front: ParetoFront, where: str = "", pick: str = "", sort: str = "", workload: str = ""
) -> ParetoFront:
    """The points of a front that match, sorted.

    Args:
        front: Front of a run.
        where: Conditions, see `ParetoFront.where`.
        pick: One of the points that satisfy the conditions, see `ParetoFront.pick`.
        sort: Metric or cost to sort by, best first.
        workload: One of several workloads; only what is best under it, see `ParetoFront.under`.

    Raises:
        InputError: If a metric or cost is unknown, or no point fits.
    """
    if workload:
        front = front.under(workload)
    if where:
        if front.points:
            front.pick(where)  # names the closest where none fits
        front = front.where(where)
    if pick:
        front = replace(front, points=(front.pick(pick),))
    if not sort:
        return front
    if sort not in front.value_names:
        raise InputError(
            f"`--sort` must be a known metric or cost, but got `{sort}`; {did_you_mean(sort, front.value_names)}."
        )
    direction = {**DIRECTIONS, **front.objectives}.get(sort.removesuffix(FINETUNED_SUFFIX))
    sign = -1 if direction == "maximize" else 1
    order = sorted(front.points, key=lambda point: sign * point.values.get(sort, sign * math.inf))
    return replace(front, points=tuple(order))


def front_as_text(front: ParetoFront, output_format: str, baselines: Sequence[Point] = ()) -> str:
    """A front as text for other programs.

    Args:
        front: The front.
        output_format: A name in `FORMATS`.
        baselines: What it is compared with: in JSON under ``baselines``; in CSV and Markdown in rows below it, told
            apart by the column ``row``, and by the source in place of the key.

    Raises:
        InputError: If the format is not in `FORMATS`.
    """
    if output_format not in FORMATS:
        raise InputError(f"`--format` must be table or one of {', '.join(FORMATS)}, but got `{output_format}`.")
    return FORMATS[output_format](front, baselines)


def _csv(front: ParetoFront, baselines: Sequence[Point]) -> str:
    table = replace(front, points=(*front, *baselines)).to_pandas()
    table.insert(0, "row", ["front"] * len(front) + ["baseline"] * len(baselines))
    return str(table.to_csv(index=False, lineterminator="\n"))


def _json(front: ParetoFront, baselines: Sequence[Point]) -> str:
    data = {**front.to_dict(), "baselines": [point.to_dict() for point in baselines]}
    return json.dumps(data, indent=2) + "\n"


def _markdown(front: ParetoFront, baselines: Sequence[Point]) -> str:
    names = ["key", *front.value_names, "subnetwork"]
    lines = [names, ["---", *("---:" for _ in front.value_names), "---"]]
    named = [*((point.key, point) for point in front), *((point.origin, point) for point in baselines)]
    for name, point in named:
        values = [format_value(n, point.values.get(n, math.nan), point.errors.get(n)) for n in front.value_names]
        lines.append([name, *values, str(point.subnet)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


FORMATS: dict[str, Callable[[ParetoFront, Sequence[Point]], str]] = {"csv": _csv, "json": _json, "markdown": _markdown}
"""Value of ``--format`` -> its writer."""

"""Listing: what of a front is printed, in which order, and as what."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

from nas.fronts.front import ParetoFront
from nas.recipe.objectives import DIRECTIONS, FINETUNED_SUFFIX, format_value
from search_spaces.errors import InputError, did_you_mean


def filter_front(front: ParetoFront, where: str = "", pick: str = "", sort: str = "") -> ParetoFront:
    """The part of a front that is asked for.

    Args:
        front: Of a run.
        where: Conditions, as `ParetoFront.where` reads them.
        pick: One point, as `ParetoFront.pick` reads it, of those that meet the conditions.
        sort: A figure; the best of it comes first.

    Raises:
        InputError: If a figure is unknown or nothing fits.
    """
    if where:
        front = front.where(where)
    if pick:
        front = replace(front, points=(front.pick(pick),))
    if not sort:
        return front
    if sort not in front.value_names:
        raise InputError(f"`--sort` needs a known figure, but got `{sort}`; {did_you_mean(sort, front.value_names)}.")
    direction = {**DIRECTIONS, **front.objectives}.get(sort.removesuffix(FINETUNED_SUFFIX))
    sign = -1 if direction == "maximize" else 1
    order = sorted(front.points, key=lambda point: sign * point.values.get(sort, sign * math.inf))
    return replace(front, points=tuple(order))


def front_as_text(front: ParetoFront, form: str) -> str:
    """A front as text for other programs.

    Raises:
        InputError: If the form is not in `FORMATS`.
    """
    if form not in FORMATS:
        raise InputError(f"`--format` must be table or one of {', '.join(FORMATS)}, but got `{form}`.")
    return FORMATS[form](front)


def _csv(front: ParetoFront) -> str:
    return str(front.to_pandas().to_csv(index=False, lineterminator="\n"))


def _json(front: ParetoFront) -> str:
    return json.dumps(front.to_dict(), indent=2) + "\n"


def _markdown(front: ParetoFront) -> str:
    names = ["key", *front.value_names, "subnetwork"]
    lines = [names, ["---", *("---:" for _ in front.value_names), "---"]]
    for point in front:
        figures = [format_value(n, point.values.get(n, math.nan), point.errors.get(n)) for n in front.value_names]
        lines.append([point.key, *figures, str(point.subnet)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


FORMATS: dict[str, Callable[[ParetoFront], str]] = {"csv": _csv, "json": _json, "markdown": _markdown}
"""Name of ``--format`` -> what writes it."""

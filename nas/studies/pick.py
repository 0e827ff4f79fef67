"""The front of a run, verified or predicted, and one subnetwork of it by a name, a condition or its key."""

from __future__ import annotations

import re
from itertools import chain

from nas.fronts.front import ParetoFront
from nas.fronts.point import PARENT_RUNTIMES, Point
from nas.runs.finetuned import front_with_finetuned
from nas.runs.run import Run

KEY = r"[0-9a-f]{10}"
"""A full key of a subnetwork."""


def front_so_far(run: Run) -> ParetoFront:
    """The verified front with fine-tuned metrics; while there is none, that of the search, whose values are predicted.

    Raises:
        InputError: If nothing is evaluated yet.
    """
    if not run.front_file.is_file() and (front := ParetoFront.of(_evaluated(run), run.recipe.objectives).points):
        return ParetoFront(front, run.recipe.objectives)
    return front_with_finetuned(run)


def pick(run: Run, what: str) -> Point:
    """A point of the front by `ParetoFront.pick`, or any evaluated subnetwork by its full key.

    The values of a verified subnetwork are measured; those of any other are predicted and of the search slice.

    Args:
        run: A run whose search has begun.
        what: What the user typed.

    Raises:
        InputError: If nothing matches.
    """
    is_verified = run.front_file.is_file()
    front = run.front() if is_verified else front_so_far(run)
    if re.fullmatch(KEY, what) and what not in {point.key for point in front}:
        verified = run.verified_points() if is_verified else []
        points = chain(verified, _evaluated(run))
        match = next(
            (point for point in points if point.key == what and point.source not in ("parent", *PARENT_RUNTIMES)),
            None,
        )
        if match is not None:
            return match
    return front.pick(what)


def _evaluated(run: Run) -> list[Point]:
    """The points of all studies; a verified front needs none, so Optuna is imported here."""
    from nas.studies.study import evaluated_points, observed_studies

    return [point for study in observed_studies(run) for point in evaluated_points(study)]

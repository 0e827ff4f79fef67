"""One subnetwork of a run, picked by a name, a condition or its key."""

from __future__ import annotations

import re
from itertools import chain

from nas.fronts.point import Point
from nas.runs.run import Run
from nas.studies.study import evaluated_points, observed_studies

KEY = r"[0-9a-f]{10}"
"""A full key of a subnetwork."""


def pick(run: Run, what: str) -> Point:
    """A point of the front by `ParetoFront.pick`, or any evaluated subnetwork by its full key.

    The values of a verified subnetwork are measured; those of any other are predicted and of the search slice.

    Args:
        run: A finished run.
        what: What the user typed.

    Raises:
        InputError: If nothing matches.
    """
    front = run.front()
    if re.fullmatch(KEY, what) and what not in {point.key for point in front}:
        evaluated = chain(run.verified_points(), *(evaluated_points(study) for study in observed_studies(run)))
        match = next((point for point in evaluated if point.key == what and point.source != "parent"), None)
        if match is not None:
            return match
    return front.pick(what)

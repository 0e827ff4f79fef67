"""Pick: one subnetwork of a run by what the user typed, on its front or anywhere among its evaluations."""

from __future__ import annotations

from itertools import chain

from nas.fronts.point import Point
from nas.runs.run import Run
from nas.studies.study import open_studies, points


def pick(run: Run, what: str) -> Point:
    """A point of the front as `ParetoFront.pick` reads it, or the whole key of anything that was evaluated.

    Figures of a verified subnetwork are measured ones, of any other those of the search.

    Raises:
        InputError: If nothing fits.
    """
    front = run.front()
    if what not in {point.key for point in front}:
        studies = open_studies(run.study, run.recipe).values()
        known = chain(run.verified_points(), *(points(study) for study in studies))
        found = next((point for point in known if point.key == what and point.source != "parent"), None)
        if found is not None:
            return found
    return front.pick(what)

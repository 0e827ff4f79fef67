"""Picks checked by enumeration: points of the front by name or condition, any evaluated one by its full key."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from nas.fronts.front import ParetoFront
from nas.fronts.point import Point
from nas.recipe.objectives import Direction
from nas.recipe.schema import Recipe
from nas.runs.files import write_json
from nas.runs.run import Run
from nas.studies.pick import pick
from search_spaces import InputError, SubnetConfig

OBJECTIVES: dict[str, Direction] = {"accuracy": "maximize", "latency_ms": "minimize"}


PARENT = Point(SubnetConfig((0, 1), (4, 4), (168, 168), 48), {"accuracy": 0.1, "latency_ms": 99.0}, source="parent")


def points(seed: int) -> list[Point]:
    """Twenty subnetworks with values of few digits, so that many are equal."""
    rng = Random(seed)
    subnets = [SubnetConfig((0,), (4,), (8 * n,), 48) for n in range(1, 21)]
    return [
        Point(s, {"accuracy": rng.randint(1, 8) / 8, "latency_ms": float(rng.randint(1, 8))}, measured=True)
        for s in subnets
    ]


def finished_run(folder: Path, recipe: Path, points_of_run: list[Point]) -> Run:
    """A run that ended with these verified points."""
    run = Run.open(folder, Recipe.load(recipe))
    front = ParetoFront.of(points_of_run, OBJECTIVES)
    verified = [point.to_dict() for point in (*points_of_run, PARENT)]
    write_json(run.front_file, {"front": front.to_dict(), "verified": verified, "reference": {}, "hypervolume": {}})
    return run


def best(points_of_run: list[Point]) -> tuple[float, float]:
    """Accuracy and latency of the most accurate, the fastest of these if several are."""
    return max((p.values["accuracy"], -p.values["latency_ms"]) for p in points_of_run)


@pytest.mark.parametrize("seed", range(5))
def test_a_pick_is_the_best_by_enumeration(text_recipe: Path, tmp_path: Path, seed: int) -> None:
    points_of_run = points(seed)
    run = finished_run(tmp_path / "run", text_recipe, points_of_run)

    def values_of_pick(what: str) -> tuple[float, float]:
        values = pick(run, what).values
        return values["accuracy"], -values["latency_ms"]

    fastest = min(p.values["latency_ms"] for p in points_of_run)
    assert values_of_pick("best") == best(points_of_run)
    assert values_of_pick("fastest") == best([p for p in points_of_run if p.values["latency_ms"] == fastest])
    for bound in (fastest, 4.5, 8.0):
        assert values_of_pick(f"latency_ms <= {bound}") == best(
            [p for p in points_of_run if p.values["latency_ms"] <= bound]
        )
    front = list(run.front())
    ends = [[p.values[name] for p in front] for name in ("accuracy", "latency_ms")]
    spans = [max(max(values) - min(values), 1e-9) for values in ends]
    gain = [p.values["accuracy"] / spans[0] - p.values["latency_ms"] / spans[1] for p in front]
    knee = pick(run, "knee")
    assert gain[[p.key for p in front].index(knee.key)] == pytest.approx(max(gain))
    for point in points_of_run:
        assert pick(run, point.key) == point


def test_picks_that_match_nothing_are_refused(text_recipe: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", text_recipe, points(0))
    for what, message in (
        ("latency_ms <= 0.5", "the closest"),
        ("latency <= 5", "did you mean `latency_ms`"),
        ("fastes", "did you mean `fastest`"),
        ("0" * 10, "A pick must be a name, a key or a condition"),
        ("", "A pick must be a name, a key or a condition"),
    ):
        with pytest.raises(InputError, match=message):
            pick(run, what)
    empty = finished_run(tmp_path / "empty", text_recipe, [])
    for what in ("knee", "best", "fastest", "latency_ms <= 5"):
        with pytest.raises(InputError, match="no point is feasible"):
            pick(empty, what)


def test_the_parent_cannot_be_picked(text_recipe: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", text_recipe, points(0))
    with pytest.raises(InputError, match="A pick must be a name"):
        pick(run, PARENT.key)

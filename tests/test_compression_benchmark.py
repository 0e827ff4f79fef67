"""The table over all families of compression: its recipes, and which model a row shows."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import pytest

from nas.fronts.point import Point
from search_spaces import SubnetConfig
from search_spaces.dimensions import DIMENSIONS

SCRIPT = Path(__file__).parents[1] / "experiments" / "compression-benchmark" / "run.py"


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_every_family_has_a_recipe_or_a_reason_on_every_task(benchmark: dict[str, Any], tmp_path: Path) -> None:
    cells = benchmark["all_cells"](tmp_path, ["seed=3", "imdb:seed=4"])
    made = [cell for cell in cells if not isinstance(cell.changes, str)]
    assert len(cells) == 3 * len({cell.family for cell in cells}) == 27
    assert {cell.settings.seed for cell in made if cell.task == "imdb"} == {4}
    assert {cell.settings.seed for cell in made if cell.task != "imdb"} == {3}
    for cell in made:
        opened = {name for name in DIMENSIONS if getattr(cell.settings.space, name) is not None}
        assert opened == {key.removeprefix("space.") for key in cell.changes if key.startswith("space.")} - {"scope"}
        choices = {DIMENSIONS[name]: len(getattr(cell.settings.space, name)) for name in opened}
        layers = 1 if cell.settings.space.scope == "uniform" else 6
        assert math.prod(n ** (1 if each.scope == "subnetwork" else layers) for each, n in choices.items()) >= 10


def test_a_row_shows_the_cheapest_model_of_the_search_that_keeps_the_quality(
    benchmark: dict[str, Any], tmp_path: Path
) -> None:
    cell = next(cell for cell in benchmark["all_cells"](tmp_path) if cell.task == "wikitext")

    def point(bits_per_byte: float, latency_ms: float, size_mb: float, source: Any = "search") -> Point:
        subnet = SubnetConfig.uniform((0,), num_attention_heads=1, intermediate_size=8, hidden_size=8)
        return Point(
            subnet, {"bits_per_byte": bits_per_byte, "latency_ms": latency_ms, "size_mb": size_mb}, source=source
        )

    parent, cheap, fast = point(1.0, 10, 10, "parent"), point(1.05, 9, 2), point(1.04, 3, 8)
    poor, twin = point(1.06, 1, 1), point(1.0, 1, 1, "int8")
    assert cell.pick([parent, fast, cheap, poor, twin], parent) is cheap
    assert cell.pick([parent, point(2.0, 1, 1), poor, twin], parent) is poor

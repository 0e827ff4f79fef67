"""Fronts, picks and hypervolumes, compared with brute force, values by hand, and Optuna."""

from __future__ import annotations

import io
import json
import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume
from rich.console import Console

from nas.fronts.confidence import hypervolume_intervals
from nas.fronts.front import ParetoFront, reference_point
from nas.fronts.output import filter_front
from nas.fronts.pareto import hypervolume, non_dominated, non_dominated_ranks
from nas.fronts.point import Point
from nas.recipe.objectives import Bound, Direction, format_value, parse_condition
from search_spaces.errors import InputError
from search_spaces.subnet import SubnetConfig

ROOT = Path(__file__).parent.parent
OBJECTIVES: dict[str, Direction] = {"accuracy": "maximize", "latency_ms": "minimize"}


def point(accuracy: float, latency_ms: float, *, heads: int = 0, feasible: bool = True, **others: float) -> Point:
    """A point whose subnetwork, and so its key, follows from its values."""
    heads = heads or 1 + int(1000 * accuracy) + int(100_000 * latency_ms)
    subnet = SubnetConfig.uniform((0, 2), num_attention_heads=heads, intermediate_size=8, hidden_size=48)
    values = {"accuracy": accuracy, "latency_ms": latency_ms, **others}
    return Point(subnet, values, {"accuracy": 0.01}, measured=True, feasible=feasible)


@pytest.fixture
def front() -> ParetoFront:
    values = [(0.70, 1.0), (0.88, 2.0), (0.90, 5.0), (0.91, 9.0), (0.80, 5.0), (0.60, 1.0)]
    return ParetoFront.of([point(a, ms, size_mb=20 * ms) for a, ms in values], OBJECTIVES)


def reached(front: ParetoFront) -> list[tuple[float, float]]:
    return [(p.values["accuracy"], p.values["latency_ms"]) for p in front]


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_non_dominated_is_what_brute_force_finds(m: int) -> None:
    values = np.random.default_rng(m).integers(0, 6, size=(80, m)).astype(float)
    values[3] = np.nan
    values[5, 0] = np.nan

    def beaten(i: int) -> bool:
        return any((row <= values[i]).all() and (row < values[i]).any() for row in values)

    expected = [not np.isnan(values[i]).any() and not beaten(i) for i in range(len(values))]
    assert non_dominated(values).tolist() == expected


@pytest.mark.parametrize("cost", [1.6e11, 1e12, 1e-9])
def test_a_small_difference_beside_a_large_number_is_one(cost: float) -> None:
    values = np.array([[cost, 2.50001], [cost, 2.5], [cost, 2.5]])
    assert non_dominated(values).tolist() == [False, True, True]
    assert non_dominated_ranks(values).tolist() == [1, 0, 0]


def test_duplicates_of_a_front_row_are_kept_and_no_rows_are_fine() -> None:
    assert non_dominated(np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 2.0]])).tolist() == [True, True, False]
    assert non_dominated(np.empty((0, 2))).tolist() == []


def test_hypervolume_by_hand() -> None:
    values = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [3.0, 3.0], [0.0, 4.0], [5.0, 0.0], [np.nan, 0.0]])
    assert hypervolume(values, np.array([4.0, 4.0])) == 3 + 2 + 1  # boxes 3x1, 2x1, 1x1; the last four add nothing
    cubes = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    assert hypervolume(cubes, np.array([2.0, 2.0, 2.0])) == 2 + 2 + 2 - 3 + 1  # inclusion and exclusion
    assert hypervolume(np.array([[1.0], [3.0]]), np.array([4.0])) == 3.0
    assert hypervolume(np.empty((0, 3)), np.ones(3)) == 0.0


def test_hypervolume_is_what_monte_carlo_estimates() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((12, 3))
    samples = rng.random((100_000, 3))
    covered = np.any(np.all(values[None] <= samples[:, None], axis=2), axis=1)
    assert hypervolume(values, np.ones(3)) == pytest.approx(
        covered.mean(), abs=5 * covered.std() / len(samples) ** 0.5
    )


@pytest.mark.parametrize("m", [2, 3, 4])
def test_hypervolume_is_what_optuna_computes(m: int) -> None:
    values = np.random.default_rng(m).random((20, m))
    values[7] = values[3]
    reference = np.full(m, 0.9)
    inside = values[(values <= reference).all(axis=1)]
    assert hypervolume(values, reference) == pytest.approx(compute_hypervolume(inside, reference))


def test_a_front_keeps_the_feasible_undominated_points_fastest_first(front: ParetoFront) -> None:
    assert reached(front) == [(0.70, 1.0), (0.88, 2.0), (0.90, 5.0), (0.91, 9.0)]
    cheat = point(0.99, 0.5, feasible=False)
    assert ParetoFront.of([*front, cheat, point(math.nan, 0.1, heads=7)], OBJECTIVES) == front


@pytest.mark.parametrize("seed", range(5))
def test_a_front_does_not_depend_on_the_order_of_its_points(seed: int) -> None:
    rng = np.random.default_rng(0)
    objectives: dict[str, Direction] = {**OBJECTIVES, "size_mb": "minimize"}
    values = rng.integers(1, 5, size=(200, 3))
    points = [point(a / 10, ms, heads=i + 1, size_mb=mb) for i, (a, ms, mb) in enumerate(values.tolist())]
    expected = ParetoFront.of(points, objectives)
    random.Random(seed).shuffle(points)
    assert ParetoFront.of(points, objectives) == expected
    vectors = [tuple(p.values[name] for name in objectives) for p in expected]
    assert len(set(vectors)) == len(vectors)


def test_the_knee_of_two_objectives_is_farthest_from_the_chord(front: ParetoFront) -> None:
    assert front.knee().values["latency_ms"] == 2.0
    assert front.pick("knee") == front.knee()
    assert ParetoFront.of([point(0.5, 1.0)], OBJECTIVES).knee().values["accuracy"] == 0.5


def test_the_knee_of_three_objectives_is_nearest_to_the_ideal() -> None:
    points = [point(0.9, 9, size_mb=9), point(0.1, 1, size_mb=9), point(0.1, 9, size_mb=1), point(0.8, 2, size_mb=2)]
    front = ParetoFront.of(points, {**OBJECTIVES, "size_mb": "minimize"})
    assert front.knee().values["accuracy"] == 0.8


def test_conditions_filter(front: ParetoFront) -> None:
    assert reached(front.where("latency_ms <= 5")) == [(0.70, 1.0), (0.88, 2.0), (0.90, 5.0)]
    assert reached(front.where("latency_ms < 5, accuracy>0.7")) == [(0.88, 2.0)]
    assert reached(front.where("size_mb == 1e2")) == [(0.90, 5.0)]
    assert len(front.where("accuracy > 1")) == 0


def test_picks(front: ParetoFront) -> None:
    assert front.pick("fastest") == front.points[0]
    assert front.pick("best") == front.best("accuracy") == front.points[-1]
    assert front.best("latency_ms") == front.points[0]
    assert front.pick("latency_ms <= 5.5") == front.points[2]
    assert front.pick(front.points[1].key) == front.pick(front.points[1].key[:6]) == front.points[1]


def test_each_of_several_workloads_has_a_front_of_its_own() -> None:
    rows = {"deep": (0.9, 3.0, 9.0), "wide": (0.8, 1.0, 9.5), "small": (0.7, 0.9, 2.0), "narrow": (0.6, 2.0, 1.0)}
    names = ("accuracy", "latency_ms@one", "latency_ms@many")
    points = {key: replace(point(*row[:2]), values=dict(zip(names, row, strict=True))) for key, row in rows.items()}
    front = ParetoFront.of(points.values(), {n: "maximize" if n == "accuracy" else "minimize" for n in names})
    assert len(front) == 4
    assert list(filter_front(front, workload="one")) == [points[key] for key in ("small", "wide", "deep")]
    assert list(front.under("many")) == [points[key] for key in ("narrow", "small", "deep")]
    assert front.pick("knee@one") == points["wide"] and "@many" not in str(front.under("one").objectives)
    with pytest.raises(InputError, match=r"must be one that `objectives` name, but got `ten`; .*many, one"):
        filter_front(front, workload="ten")
    with pytest.raises(InputError, match="is of one, without a name"):
        ParetoFront.of([], OBJECTIVES).under("one")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("latency_ms < 1", "closest, .* reaches latency_ms 1 for `< 1`"),
        ("accuracy >= 0.95, latency_ms <= 9", "reaches accuracy 0.91 for `>= 0.95`, latency_ms 9 for `<= 9`"),
        ("latency <= 5", "did you mean `latency_ms`"),
        ("latency_ms <= five", "latency_ms <= 5"),
        ("latency_ms <= 5 ms", "latency_ms <= 5"),
        ("kneee", "did you mean `knee`"),
        ("", "known: "),
    ],
)
def test_a_pick_that_fits_nothing_names_the_closest(front: ParetoFront, what: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        front.pick(what)


def test_an_ambiguous_key_lists_its_candidates() -> None:
    points = [point(0.01 * i, float(i), heads=i) for i in range(1, 40)]
    front = ParetoFront.of(points, OBJECTIVES)
    start = next(p.key[0] for p in front if sum(q.key[0] == p.key[0] for q in front) > 1)
    with pytest.raises(InputError, match="must be unique"):
        front.pick(start)


def test_an_empty_front_says_so() -> None:
    front = ParetoFront.of([], OBJECTIVES)
    assert front.hypervolume({"accuracy": 0.0, "latency_ms": 10.0}) == 0.0
    assert len(front.where("latency_ms <= 5")) == 0 and front.table().row_count == 0 and front.to_pandas().empty
    for pick in ("knee", "best", "latency_ms <= 5"):
        with pytest.raises(InputError, match="no point is feasible"):
            front.pick(pick)


def test_objectives_and_values_are_checked(front: ParetoFront) -> None:
    with pytest.raises(InputError, match="lacks `size_mb`"):
        ParetoFront.of([point(0.5, 1.0)], {**OBJECTIVES, "size_mb": "minimize"})
    with pytest.raises(InputError, match="accuracy: up"):
        ParetoFront.of([], {"accuracy": "up"})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="did you mean `accuracy`"):
        front.best("acuracy")
    with pytest.raises(InputError, match="latency_ms"):
        front.hypervolume({"accuracy": 0.0})


def test_bounds() -> None:
    assert Bound.parse(" <= 40") == Bound("<=", 40.0) and str(Bound.parse(">=0.5")) == ">= 0.5"
    assert Bound("<=", 40).violation(43) == 3 and Bound("<=", 40).violation(38) == -2
    assert Bound(">=", 0.9).violation(0.5) == pytest.approx(0.4)
    assert Bound("<=", 40).violation(40) <= 0 < Bound("<", 40).violation(40) < 1e-300
    assert Bound(">", 40).violation(40) > 0 >= Bound("==", 40).violation(40)
    assert Bound("<=", 40).violation(math.nan) == math.inf
    assert parse_condition("latency_ms<=5e-1") == ("latency_ms", Bound("<=", 0.5))
    for text in ("40", "<= forty", "=< 40", "<= 40 ms", "<= nan", ""):
        with pytest.raises(InputError, match="<= 40"):
            Bound.parse(text)


def test_the_reference_point_is_a_tenth_beyond_the_worst() -> None:
    points = [point(0.5, 2.0, feasible=False), point(0.9, 12.0), point(math.nan, 3.0, heads=1)]
    assert reference_point(points, OBJECTIVES) == pytest.approx({"accuracy": 0.46, "latency_ms": 13.0})
    assert reference_point(points[:1], OBJECTIVES) == pytest.approx({"accuracy": 0.45, "latency_ms": 2.2})
    with pytest.raises(InputError, match="finite"):
        reference_point([], OBJECTIVES)


def test_the_hypervolume_of_a_front_respects_directions(front: ParetoFront) -> None:
    kept = ParetoFront.of([point(0.5, 2.0), point(0.75, 4.0)], OBJECTIVES)
    assert kept.hypervolume({"accuracy": 0.25, "latency_ms": 8.0}) == 0.25 * 6 + 0.25 * 4


def test_json_and_pandas_round_trip(front: ParetoFront) -> None:
    assert ParetoFront.from_dict(json.loads(json.dumps(front.to_dict()))) == front
    frame = front.to_pandas()
    assert list(frame["key"]) == [p.key for p in front]
    assert list(frame.columns[:4]) == ["key", "accuracy", "latency_ms", "size_mb"] and "accuracy_error" in frame


def test_the_table_marks_the_knee_and_says_what_was_measured(front: ParetoFront) -> None:
    page = front._repr_html_()
    row = next(row for row in page.split("<tr ") if row.startswith(f'data-key="{front.knee().key}"'))
    assert page.count("<tr data-key=") == 4 and page.count("◀") == 2 and "measured on the exported model" in page
    assert re.findall("<td>(.*?)</td>", row)[:4] == [f"{front.knee().key} ◀", "0.8800 ± 0.0100", "2.00", "40.0"]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_table_loses_nothing_in_a_narrow_terminal(width: int) -> None:
    rng = random.Random(0)
    subnets = [
        SubnetConfig((0, 1, 3, 5), *(tuple(rng.sample(range(100, 1000), 4)) for _ in "ab"), 48) for _ in range(3)
    ]
    values = {"num_parameters": 22_713_216, "macs": 1.43e9, "size_mb": 0.0453, "loss": 0.3}
    errors = {"accuracy": 0.01, "latency_ms": 1.1}
    points = [Point(s, {"accuracy": i / 10, "latency_ms": 12 + i, **values}, errors) for i, s in enumerate(subnets)]
    front = ParetoFront.of(points, OBJECTIVES)
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(front.table())
    text = console.export_text()
    assert "…" not in text and "loss" not in text and max(map(len, text.splitlines())) <= width
    assert "(0 of 3 measured)" in " ".join(text.split())
    for word in ("accuracy", "size_mb", "latency_ms", "0.0453", "12.0", "1.1"):
        assert word in text, word
    digits = text.split(front.points[-1].key)[1]
    assert all(str(heads) in digits.replace("\n", "") for heads in front.points[-1].subnet.num_attention_heads)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.91234, "0.9123"),
        ("latency_ms", 2.3149, "2.31"),
        ("latency_ms", 123.4, "123"),
        ("latency_ms", 0.01234, "0.0123"),
        ("latency_ms", 0.0, "0"),
        ("num_parameters", 22_713_216, "22.71M"),
        ("num_hidden_layers", 6, "6"),
        ("macs", 1.43e9, "1.43G"),
        ("size_mb", 90.87, "90.9"),
        ("size_mb", 123.44, "123.4"),
        ("size_mb", 0.0453, "0.0453"),
        ("size_mb", 0.0, "0.0"),
        ("accuracy", math.nan, "–"),
    ],
)
def test_values_are_formatted(name: str, value: float, text: str) -> None:
    assert format_value(name, value) == text


def test_an_error_that_is_not_known_is_not_written_as_zero() -> None:
    assert format_value("latency_ms", 2.3149, 0.012) == "2.31 ± 0.01"
    assert format_value("latency_ms", 2.3149, 0.0042) == "2.31 ± 0.004"
    assert format_value("accuracy", 1.0, 0.0) == "1.0000"


def test_importing_fronts_loads_nothing_heavy() -> None:
    code = "import sys, nas.fronts.front; print([m for m in ('torch', 'transformers', 'plotly') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_row_of_the_table_has_every_column() -> None:
    """A part that only some subnetworks have, such as a low rank, has its column in the others too."""
    full_rank = SubnetConfig.uniform((0, 1), num_attention_heads=4, intermediate_size=8, hidden_size=16)
    low_rank = SubnetConfig.uniform((0, 1), num_attention_heads=2, intermediate_size=8, hidden_size=16, mlp_rank=50)
    points = [
        Point(s, {"accuracy": 1 - i / 10, "latency_ms": 9.0 - i}, {}) for i, s in enumerate((full_rank, low_rank))
    ]
    table = ParetoFront.of(points, {"accuracy": "maximize", "latency_ms": "minimize"}).table()
    column = table.columns[-1]
    parts = str(column.header).split(" · ")
    rows = [dict(zip(parts, str(cell).split(" · "), strict=True)) for cell in column.cells]
    assert [(row["heads"], row["mlp rank %"], row["hidden"]) for row in rows] == [("2", "50", "16"), ("4", "-", "16")]


def test_intervals_of_hypervolumes_are_over_resamples_that_all_models_share() -> None:
    rng = np.random.default_rng(0)
    objectives: dict[str, Direction] = {"accuracy": "maximize", "latency_ms": "minimize"}
    reference, noise = {"accuracy": 0.0, "latency_ms": 10.0}, rng.normal(0, 0.05, 200)
    one, two = point(0.6, 5.0), point(0.5, 5.0, heads=1)
    groups = {"sampler": [one], "random": [two], "search": [one, two]}
    resampled = {p.key: {"accuracy": list(p.values["accuracy"] + noise)} for p in (one, two)}
    intervals = hypervolume_intervals(groups, resampled, reference, objectives)
    low, high = np.quantile(5 * (0.6 + noise), (0.05, 0.95))
    assert intervals["sampler"] == pytest.approx([low, high]) == intervals["search"]
    assert intervals["gain"] == pytest.approx([0.5, 0.5]), "the examples that one finds hard the other finds hard too"
    infeasible = {"random": [point(0.5, 5.0, heads=1, feasible=False)]}
    assert hypervolume_intervals(infeasible, resampled, reference, objectives)["random"] == [0.0, 0.0]
    assert hypervolume_intervals(groups, {one.key: resampled[one.key]}, reference, objectives) == {}

"""Fronts filtered, sorted, picked and written as text; runs compared and watched."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rich.console import Console

from nas.commands.compare import attainment, attainment_table, compare_runs, first_cost, hypervolume_table, plot
from nas.commands.watch import status_lines
from nas.fronts.baselines import baseline_rows
from nas.fronts.front import ParetoFront
from nas.fronts.output import filter_front, front_as_text
from nas.fronts.point import Point
from nas.fronts.table import html_baselines
from nas.recipe.objectives import Direction
from nas.recipe.schema import Recipe
from nas.runs import progress as progress_module
from nas.runs.run import Run
from search_spaces import InputError, SubnetConfig

OBJECTIVES: dict[str, Direction] = {"accuracy": "maximize", "latency_ms": "minimize"}


def point(accuracy: float, latency_ms: float, heads: int) -> Point:
    subnet = SubnetConfig.uniform((0, 2), num_attention_heads=heads, intermediate_size=64, hidden_size=48)
    values = {"accuracy": accuracy, "latency_ms": latency_ms, "size_mb": 10.0 - heads}
    return Point(subnet, values, {"accuracy": 0.01}, measured=True)


@pytest.fixture
def front() -> ParetoFront:
    return ParetoFront.of([point(0.7, 1.0, 1), point(0.88, 2.0, 2), point(0.9, 5.0, 4)], OBJECTIVES)


def latencies(front: ParetoFront) -> list[float]:
    return [p.values["latency_ms"] for p in front]


def test_a_front_is_filtered_sorted_and_picked(front: ParetoFront) -> None:
    assert latencies(filter_front(front)) == [1.0, 2.0, 5.0]
    assert latencies(filter_front(front, sort="accuracy")) == [5.0, 2.0, 1.0]
    assert latencies(filter_front(front, sort="size_mb")) == [5.0, 2.0, 1.0]
    assert latencies(filter_front(front, where="accuracy > 0.8", sort="latency_ms")) == [2.0, 5.0]
    assert latencies(filter_front(front, pick="latency_ms <= 3")) == [2.0] and latencies(
        filter_front(front, pick="best")
    ) == [5.0]
    with pytest.raises(InputError, match="did you mean `accuracy`"):
        filter_front(front, sort="acuracy")
    with pytest.raises(InputError, match=r"must satisfy `accuracy > 2`.*the closest.*reaches accuracy 0.9"):
        filter_front(front, where="accuracy > 2", sort="accuracy")


def test_other_programs_can_read_it(front: ParetoFront) -> None:
    frame = pd.read_csv(io.StringIO(front_as_text(front, "csv")))
    assert list(frame["latency_ms"]) == [1.0, 2.0, 5.0] and frame["key"][0] == front.points[0].key
    assert ParetoFront.from_dict(json.loads(front_as_text(front, "json"))) == front
    rows = [line.strip("| \n").split(" | ") for line in front_as_text(front, "markdown").splitlines()]
    assert [row[1] for row in rows[2:]] == ["0.7000 ± 0.0100", "0.8800 ± 0.0100", "0.9000 ± 0.0100"]
    with pytest.raises(InputError, match="csv, json, markdown"):
        front_as_text(front, "xml")


def as_text(table: object, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def test_fronts_are_compared_by_hypervolume_and_by_cost_at_equal_metrics(front: ParetoFront) -> None:
    worse = ParetoFront.of([point(0.7, 2.0, 1), point(0.85, 6.0, 4)], OBJECTIVES)
    assert attainment(front, "accuracy", "latency_ms", 0.8) == 2.0
    assert attainment(worse, "accuracy", "latency_ms", 0.8) == 6.0
    assert attainment(worse, "accuracy", "latency_ms", 0.9) == float("inf")
    fronts = {"a": front, "b": worse}
    volumes = [
        line.split()[-1] for line in as_text(hypervolume_table(fronts)).splitlines() if line[:2] in ("a ", "b ")
    ]
    reference = {"accuracy": 0.68, "latency_ms": 6.5}
    assert volumes == [f"{f.hypervolume(reference):.4g}" for f in fronts.values()]
    assert "never" in as_text(attainment_table(fronts))
    page = plot(fronts)
    assert front.points[0].key in page and "cdn.plot.ly" not in page.split("<body>")[0]


def test_costs_are_compared_where_a_front_has_two_metrics(front: ParetoFront) -> None:
    both: dict[str, Direction] = {"accuracy": "maximize", "f1": "maximize", "latency_ms": "minimize"}
    points = [replace(each, values={**each.values, "f1": 0.5}) for each in front]
    assert first_cost(ParetoFront.of(points, both)) == "latency_ms"


def run_of(folder: Path, recipe: Path, front: ParetoFront, **changed: str) -> Run:
    folder.mkdir()
    overrides = [f"{name}={value}" for name, value in changed.items()]
    (folder / "recipe.yaml").write_text(Recipe.load(recipe, overrides).to_yaml())
    (folder / "environment.json").write_text('{"device": "a processor"}')
    verified = [p.to_dict() for p in (*front, replace(front.points[-1], source="parent"))]
    results = {"front": front.to_dict(), "verified": verified, "reference": {}, "hypervolume": {}}
    (folder / "front.json").write_text(json.dumps(results))
    return Run(folder)


def test_only_runs_that_measure_the_same_compare(text_recipe: Path, tmp_path: Path, front: ParetoFront) -> None:
    a, b = (run_of(tmp_path / name, text_recipe, front) for name in "ab")
    tables = compare_runs([a, b], tmp_path / "compare.html")
    assert len(tables) == 2 and (tmp_path / "compare.html").stat().st_size > 1_000_000
    other = run_of(tmp_path / "c", text_recipe, front, **{"workload.batch_size": "7"})
    with pytest.raises(InputError, match="same `workload`"):
        compare_runs([a, other], tmp_path / "none.html")
    with pytest.raises(InputError, match="at least two"):
        compare_runs([a], tmp_path / "none.html")
    copy, another = tmp_path / "same" / "test.csv", tmp_path / "another" / "test.csv"
    rows = (text_recipe.parent / "test.csv").read_text().splitlines(keepends=True)
    for file, lines in ((copy, rows), (another, rows[:-1])):
        file.parent.mkdir()
        file.write_text("".join(lines))
    moved = run_of(tmp_path / "moved", text_recipe, front, **{"task.test": str(copy)})
    assert len(compare_runs([a, moved], tmp_path / "compare.html")) == 2
    namesake = run_of(tmp_path / "namesake", text_recipe, front, **{"task.test": str(another)})
    with pytest.raises(InputError, match=r"same `task.test`.*test.csv.* with the content"):
        compare_runs([a, namesake], tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_what_a_front_is_compared_with_is_in_rows_everywhere(front: ParetoFront) -> None:
    knee = front.knee()
    subnets = [SubnetConfig((0,), (4,), (8 * n,), 48) for n in range(1, 8)]
    latency = knee.values["latency_ms"]
    values = {
        "parent": [(0.95, 9 * latency)],
        "parent-onnxruntime": [(0.95, 4 * latency)],
        "parent-int8": [(0.94, 3 * latency)],
        "layer-drop": [(0.8, latency)],
        "random": [(0.5, 0.5 * latency), (0.6, latency), (0.99, 1.01 * latency)],
        "search": [(0.9, latency)],
    }
    pairs = [(source, pair) for source, each in values.items() for pair in each]
    verified = [
        Point(subnet, {"accuracy": accuracy, "latency_ms": ms}, source=source, measured=True)  # type: ignore[arg-type]
        for subnet, (source, (accuracy, ms)) in zip(subnets + subnets[:1], pairs, strict=True)
    ]
    rows = baseline_rows(front, verified)
    assert [row.source for row in rows] == ["parent", "parent-onnxruntime", "parent-int8", "layer-drop", "random"]
    assert rows[-1].values["accuracy"] == 0.6, "of random search the best that costs at most what the knee costs"
    data = json.loads(front_as_text(front, "json", rows))
    assert [Point.from_dict(point) for point in data["baselines"]] == rows
    assert all(row.origin in html_baselines(rows, front.value_names) for row in rows)
    frame = pd.read_csv(io.StringIO(front_as_text(front, "csv", rows)))
    assert list(frame["row"]) == ["front"] * len(front) + ["baseline"] * len(rows)
    assert list(frame["source"][len(front) :]) == [row.source for row in rows]
    markdown = front_as_text(front, "markdown", rows).splitlines()[2 + len(front) :]
    assert [line.split(" | ")[0].strip("| ") for line in markdown] == [row.origin for row in rows]
    assert [row.origin for row in rows][3] == "layer-drop (not trained)" and replace(
        rows[3], finished=True
    ).origin == "layer-drop"


def test_watching_a_running_search_changes_nothing(text_recipe: Path, tmp_path: Path, front: ParetoFront) -> None:
    run = run_of(tmp_path / "run", text_recipe, front)
    run.front_file.unlink()
    (run.folder / "supernet.partial" / "checkpoints" / "checkpoint-40").mkdir(parents=True)
    run.parent.mkdir()
    waiting = [f"{name:<10} not started" for name in ("profile", "search", "finish", "verify", "report", "export")]
    assert status_lines(run) == ["parent     done", "supernet   in training, past step 40", *waiting]
    storage = JournalStorage(JournalFileBackend(str(run.study)))
    study = optuna.create_study(storage=storage, study_name="search", directions=["maximize", "minimize"])
    for each in front:
        attributes = {"point": each.to_dict()}
        study.add_trial(optuna.create_trial(values=[each.values[n] for n in OBJECTIVES], user_attrs=attributes))
    with run.study.open("a") as file:
        file.write('{"op_code": 5, "half a rec')
    before = run.study.read_bytes()
    state, line = status_lines(run)[3:5]
    assert state == "search     started"
    assert line.startswith("  search   3 evaluated · ") and "best accuracy 0.9000" in line
    assert run.study.read_bytes() == before


def test_bars_fit_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=80, file=io.StringIO(), record=True, force_terminal=True)
    monkeypatch.setattr(progress_module, "console", console)
    task = progress_module.Task("search", done=50, total=100)
    task.note = "100 feasible · 18 on the front · hypervolume 2.391 · best accuracy 0.9533"
    console.print(task.rendered())
    text = console.export_text()
    assert "search" in text and "50/100" in text and "best accuracy 0.9533" in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 80

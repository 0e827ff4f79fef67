"""The report opens without a network, holds its data, and no name in it can become markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nas.fronts.front import ParetoFront
from nas.fronts.point import Point, Source
from nas.recipe.objectives import Bound, Direction
from nas.reports.html import _point, write_report
from search_spaces.subnet import SubnetConfig

OBJECTIVES: dict[str, Direction] = {"accuracy": "maximize", "latency_ms": "minimize"}
EVIL = "</script><script>document.title='broken'</script>{{data}} & <b>"


def subnet(layers: int, width: int) -> SubnetConfig:
    return SubnetConfig.uniform(
        tuple(range(layers)), num_attention_heads=width, intermediate_size=128 * width, hidden_size=48
    )


def point(layers: int, width: int, source: Source = "search", measured: bool = True) -> Point:
    values = {"accuracy": 0.6 + 0.05 * layers + 0.001 * width, "latency_ms": 1.5 * layers + 0.1 * width}
    return Point(subnet(layers, width), values, {"accuracy": 0.01} if measured else {}, source, measured)


def write(path: Path, evaluated: int = 50) -> Path:
    """A small run with every kind of point, and names that try to escape."""
    verified = [point(n, 8) for n in (3, 4, 5)] + [point(n, 4, "uniform") for n in (3, 5)]
    verified += [point(6, 12, "parent"), point(2, 12, "random")]
    predicted = [point(2 + i % 5, 1 + i % 12, measured=False) for i in range(evaluated)]
    predicted = [replace(p, values={**p.values, EVIL: float("nan")}) for p in predicted]
    write_report(
        path,
        title=EVIL,
        front=ParetoFront.of([p for p in verified if p.source == "search"], OBJECTIVES),
        verified=verified,
        evaluated=predicted,
        constraints={"latency_ms": Bound.parse("<= 8"), EVIL: Bound.parse(">= 1")},
        facts={"workload": "torch · cpu", EVIL: EVIL},
        notes=["a note", EVIL],
        export_command="nas export runs/x --pick {key}",
    )
    return path


def write_two_workloads(path: Path) -> Path:
    """A report of two workloads that order the models differently, with an earlier front."""
    objectives: dict[str, Direction] = {"accuracy": "maximize"}
    objectives |= {"latency_ms@phone": "minimize", "latency_ms@server": "minimize"}

    def named(one: Point) -> Point:
        ms = one.values["latency_ms"]
        values = {"accuracy": one.values["accuracy"], "latency_ms@phone": ms, "latency_ms@server": 9 / ms}
        return replace(one, values=values, errors={})

    points = [named(point(n, 8)) for n in (3, 4, 5)]
    write_report(
        path,
        title="two workloads",
        front=ParetoFront.of(points, objectives),
        verified=[*points, replace(points[-1], source="parent")],
        evaluated=[],
        constraints={},
        facts={"seed": "0"},
        notes=[],
        export_command="{key}",
        workloads={name: {"Workload": f"torch of the {name}"} for name in ("phone", "server")},
        earlier=points[:2],
    )
    return path


def scripts(page: str) -> list[str]:
    """The contents of the three script elements: data, plotly, the page's own."""
    return re.findall(r"<script[^>]*>(.*?)</script>", page, flags=re.DOTALL)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("run") / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data(page: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(scripts(page)[0])
    return data


def test_the_report_needs_no_network(page: str) -> None:
    sources: list[tuple[str, str | None]] = []

    class Sources(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            sources.extend((tag, value) for name, value in attrs if name in ("src", "href", "srcset", "action"))

    Sources().feed(page)
    assert sources == [("link", "data:,")]
    assert "@import" not in page.split("</style>")[0] and "url(" not in page.split("</style>")[0]


def test_names_stay_text(page: str) -> None:
    assert len(scripts(page)) == 3 and page.count("plotly.js (gl2d - minified) v") == 1
    assert EVIL not in page
    assert page.count('"export_command":') == 1, "a placeholder inside a name was filled in"


def test_the_data_holds_every_kind_of_point(data: dict[str, Any]) -> None:
    series = {s["kind"]: s for s in data["series"]}
    assert list(series) == ["evaluated", "uniform", "random", "front", "parent"]
    assert "predicted" in series["evaluated"]["name"] and "measured" in series["front"]["name"]
    assert len(series["evaluated"]["points"]) == 50 and len(series["front"]["points"]) == 3
    assert data["layers"] == 6 and data["objectives"] == OBJECTIVES
    assert data["constraints"][0] == {"name": "latency_ms", "op": "<=", "value": 8.0, "text": "<= 8"}
    first = series["front"]["points"][0]
    assert first["text"]["accuracy"] == "0.7580 ± 0.0100"
    assert first["subnet"].keys() == {
        "layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_size",
    }
    grouped = SubnetConfig.uniform(
        (0, 1), num_attention_heads=4, num_key_value_heads=2, intermediate_size=8, hidden_size=8
    )
    assert _point(Point(grouped, {}))["subnet"] == grouped.to_dict()
    assert series["evaluated"]["points"][0]["values"][EVIL] is None


def test_baselines_that_were_not_verified_are_shown_as_predicted(tmp_path: Path) -> None:
    front = ParetoFront.of([point(3, 8)], OBJECTIVES)
    guesses = [point(3, 4, "random", measured=False)]
    write_report(
        tmp_path / "r.html",
        title="t",
        front=front,
        verified=list(front),
        evaluated=guesses,
        constraints={},
        facts={},
        notes=[],
        export_command="{key}",
    )
    series = json.loads(scripts((tmp_path / "r.html").read_text(encoding="utf-8"))[0])["series"]
    assert [s["name"] for s in series if s["kind"] == "random"] == ["random baseline (predicted)"]


def test_facts_notes_and_table_are_readable_without_javascript(page: str) -> None:
    assert "<dt>workload</dt><dd>torch · cpu</dd>" in page and "<li>a note</li>" in page
    assert page.count("<tr data-key=") == 3 and "held-out split" in page
    assert "<code>latency_ms &lt;= 8</code>" in page


def test_an_empty_run_still_gets_a_report(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(
        path,
        title="t",
        front=ParetoFront.of([], OBJECTIVES),
        verified=[],
        evaluated=[],
        constraints={},
        facts={},
        notes=[],
        export_command="{key}",
    )
    assert "The front is empty" in path.read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("nas.runs.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_each_workload_has_its_facts_and_the_earlier_front_is_drawn(tmp_path: Path) -> None:
    page = write_two_workloads(tmp_path / "report.html").read_text(encoding="utf-8")
    data = json.loads(scripts(page)[0])
    assert data["workloads"] == ["phone", "server"]
    assert '<div data-workload="phone"><dt>Workload · phone</dt><dd>torch of the phone</dd></div>' in page
    assert {s["kind"]: len(s["points"]) for s in data["series"]} == {"earlier": 2, "front": 3, "parent": 1}

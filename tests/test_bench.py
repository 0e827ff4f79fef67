"""`nas bench`: models compared, to the wanted precision, on the scale of the faster pass."""

from __future__ import annotations

import io
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from toys import bert

from nas.commands.bench import BenchRow, bench_noise_warning, bench_rows, bench_table, write_csv
from nas.commands.bench import _timings as bench_timings
from nas.recipe.schema import Recipe
from nas.supernets.supernet import Supernet
from predictors import Timing, Workload, measure
from predictors.measurement.plan import Plan
from predictors.measurement.timing import REFERENCE
from search_spaces import InputError

WORKLOAD = Workload(sequence_length=16)


@pytest.fixture
def recipe(text_recipe: Path) -> Recipe:
    return Recipe.load(text_recipe)


def test_bench_runs_no_code_that_comes_with_a_model(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "stranger"
    folder.mkdir()
    bert().config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="cannot be loaded"):
        bench_rows([str(folder)], recipe)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_bench_compares_models_and_writes_every_digit(recipe: Recipe, tmp_path: Path) -> None:
    folders = [str(tmp_path / name) for name in ("first", "second")]
    supernet = Supernet(bert().eval())
    supernet.model.save_pretrained(folders[0])
    integers = supernet.parent.with_values(bits=("int8",) * supernet.parent.num_hidden_layers)
    supernet.extract(integers).save_pretrained(folders[1])
    rows = bench_rows(folders, recipe, 0.5)
    assert bench_table(rows).row_count == 2 and rows[0].timing.ratio == 1
    for timing in (row.timing for row in rows):
        assert timing.ratio_low <= timing.ratio <= timing.ratio_high
    assert all(row.memory_mb is not None and row.memory_mb > 0 for row in rows)
    assert "latencies" in bench_noise_warning(rows, 0.0) and "latencies" not in bench_noise_warning(rows, 1e9)
    write_csv(rows, tmp_path / "bench.csv")
    table = pd.read_csv(tmp_path / "bench.csv")
    assert table.latency_ms.tolist() == pytest.approx([row.timing.latency_ms for row in rows])
    assert table.runtime.tolist() == ["torch"] * 2 and {"ratio_low", "ratio_high", "energy_mj"} <= {*table.columns}
    samples = table.samples_per_second * table.latency_ms / 1e3
    assert samples.tolist() == pytest.approx([recipe.workload.batch_size] * 2)


def test_bench_is_on_the_scale_of_the_faster_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([12.0, 10.0])

    def measured(calls: dict[str, object], *_: object, **__: object) -> dict[str, Timing]:
        reference_ms = next(left)
        ratios = {REFERENCE: 1.0, **dict.fromkeys(calls, 0.5)}
        return {
            n: Timing(r, r * reference_ms, r * reference_ms, r * reference_ms, r * reference_ms, 9)
            for n, r in ratios.items()
        }

    monkeypatch.setattr("nas.commands.bench.measure", measured)
    monkeypatch.setattr("nas.commands.bench.load", lambda *_: lambda: None)
    plan = Plan(WORKLOAD, "", {"a": "", "b": ""}, {}, "a", 2, 0.02)
    timings = bench_timings(plan, tmp_path)
    assert [timings[name].latency_ms for name in ("a", "b")] == pytest.approx([10.0, 5.0])
    assert (timings["a"].ratio, timings["b"].ratio) == pytest.approx((1.0, 0.5))
    assert timings["b"].drift == pytest.approx(0.2)


def test_bench_measures_until_both_passes_together_reach_the_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a simulated machine with 2 % noise; more rounds cannot correct a second load that is 10 % slower."""
    noise, slower = Random(0), 1.0

    def took(call: str, *_: object) -> float:
        return 10 * noise.gauss(1, 0.02) * (slower if call == "1b" else 1)

    monkeypatch.setattr(sys.modules["predictors.measurement.rounds"], "fastest_ms", took)
    monkeypatch.setattr(sys.modules["predictors.measurement.rounds"], "benchmark_mode", lambda _: nullcontext())
    plan = Plan(WORKLOAD, "", {"a": "", "b": ""}, {}, "a", 2, 0.02)

    def measure_once() -> Timing:
        loaded = iter(["0a", "0b", "1a", "1b"])
        monkeypatch.setattr("nas.commands.bench.load", lambda *_: next(loaded))
        return bench_timings(plan, tmp_path)["b"]

    timings = [measure_once() for _ in range(25)]
    assert sum(timing.precision > 0.02 for timing in timings) == 0
    assert all(timing.rounds <= 120 for timing in timings) and sum(timing.rounds for timing in timings) < 80 * 25
    slower = 1.1
    assert measure_once().precision > 0.04


def test_a_narrow_table_has_complete_model_names() -> None:
    names = [f"/somewhere/with-a-long-name/{name}" for name in ("first", "second")]
    rows = [BenchRow(name, Timing(1, 9, 8, 10, 9, 22, 1, 1), 99.0, None, 5.0, 6.0, WORKLOAD, "") for name in names]
    console = Console(width=80, file=io.StringIO())
    console.print(bench_table(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    cells = "".join(line[: line.rfind("  ")].split(" ")[0] for line in text.splitlines()[2:])
    assert all(name in cells for name in names), text


def test_a_bench_of_one_model_reaches_the_precision_or_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Random(0)
    monkeypatch.setattr("nas.commands.bench.load", lambda folder, plan, name: folder)
    monkeypatch.setattr(sys.modules["predictors.measurement.rounds"], "benchmark_mode", lambda _: nullcontext())

    def rows_of(precision: float, *passes_ms: float) -> list[BenchRow]:
        left = iter(passes_ms)

        def measured(calls: Any, first: Any, *rest: Any, **options: Any) -> dict[str, Timing]:
            ms = next(left)
            monkeypatch.setattr(
                sys.modules["predictors.measurement.rounds"], "fastest_ms", lambda *_: ms * noise.gauss(1, 0.02)
            )
            return measure(calls, first, *rest, **options)

        monkeypatch.setattr("nas.commands.bench.measure", measured)
        timing = bench_timings(Plan(WORKLOAD, "", {"a": ""}, {}, "a", 2, precision), tmp_path)["a"]
        assert timing.ratio_low < timing.ratio == 1 < timing.ratio_high
        return [BenchRow("a", timing, None, None, 1.0, 2.0, WORKLOAD, "")]

    assert all(not bench_noise_warning(rows_of(0.02, 10, 10), 0.02) for _ in range(25))
    assert "the worst, a, is ±" in bench_noise_warning(rows_of(1e-4, 10, 10), 1e-4)
    apart = rows_of(0.03, 10, 10.8)
    assert "the worst, a, is ±" in bench_noise_warning(apart, 0.03) and 10 < apart[0].timing.latency_ms < 10.8

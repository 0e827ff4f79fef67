"""Bench: any Hugging Face models of a recipe's task, measured side by side on its workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table

from nas.config import Recipe
from nas.tasks.workbench import Workbench
from predictors import device_name, measure
from predictors.measure import ANCHOR
from predictors.runtimes import Call, prepared
from search_spaces import AUTO_CLASSES, InputError


@dataclass(frozen=True)
class BenchRow:
    """One model of a comparison; spreads are the 10th and 90th percentile over rounds.

    Attributes:
        model: Folder or hub id.
        ratio: Its latency over the first model's, measured side by side.
        samples_per_second: Throughput of calls one after the other.
    """

    model: str
    latency_ms: float
    latency_ms_p10: float
    latency_ms_p90: float
    ratio: float
    ratio_p10: float
    ratio_p90: float
    samples_per_second: float
    workload: str
    device_name: str


def bench_rows(models: Sequence[str], recipe: Recipe) -> list[BenchRow]:
    """Latency of each model and its ratio to the first, measured in interleaved rounds.

    Args:
        models: Folders or hub ids that the task's auto class loads.
        recipe: Gives the task and the workload.

    Raises:
        InputError: If a model does not load, or the workload cannot run here.
    """
    workload = recipe.workload
    workload.check_available()
    calls = {name: _runner(name, recipe) for name in models}
    timed = measure(calls, calls[models[0]], workload)
    reference = timed[ANCHOR].latency_ms
    rows = []
    for name in models:
        t = timed[name]
        row = BenchRow(
            model=name,
            latency_ms=t.latency_ms,
            latency_ms_p10=t.latency_ms_p10,
            latency_ms_p90=t.latency_ms_p90,
            ratio=t.ratio,
            ratio_p10=t.latency_ms_p10 / reference,
            ratio_p90=t.latency_ms_p90 / reference,
            samples_per_second=workload.batch_size / t.latency_ms * 1e3,
            workload=str(workload),
            device_name=device_name(workload),
        )
        rows.append(row)
    return rows


def bench_table(rows: Sequence[BenchRow]) -> Table:
    """Rows as people read them."""
    table = Table(title=f"{rows[0].workload} · {rows[0].device_name}")
    for column in ("model", "latency_ms", "10-90 %", "ratio", "10-90 %", "samples/s"):
        table.add_column(column)
    for r in rows:
        spread = f"{r.latency_ms_p10:.3g} - {r.latency_ms_p90:.3g}"
        ratios = f"{r.ratio_p10:.3g} - {r.ratio_p90:.3g}"
        table.add_row(r.model, f"{r.latency_ms:.3g}", spread, f"{r.ratio:.3f}", ratios, f"{r.samples_per_second:.3g}")
    return table


def write_csv(rows: Sequence[BenchRow], file: Path) -> None:
    """Writes rows with every digit."""
    import pandas as pd

    pd.DataFrame([asdict(row) for row in rows]).to_csv(file, index=False)


def _runner(name: str, recipe: Recipe) -> Call:
    import transformers

    workload = recipe.workload
    bench = Workbench(recipe.model_copy(update={"model": name}))
    auto = getattr(transformers, AUTO_CLASSES[recipe.task.type])
    inputs = bench.dummy_inputs(workload)
    try:
        model = auto.from_pretrained(name, trust_remote_code=False, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"model `{name}` cannot be loaded: {' '.join(str(error).split())[:160]}") from None
    return prepared(model, inputs, workload)

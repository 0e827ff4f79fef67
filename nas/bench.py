"""Bench: any Hugging Face models of a recipe's task, measured side by side on its workload."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.table import Table

from nas.config import Recipe
from nas.tasks.workbench import Workbench
from predictors import device_name, measure
from predictors.runtimes import Call, prepared
from search_spaces import AUTO_CLASSES, InputError


def bench_table(models: Sequence[str], recipe: Recipe) -> Table:
    """Latency of each model and its ratio to the first, measured in interleaved rounds.

    Args:
        models: Folders or hub ids that the task's auto class loads.
        recipe: Gives the task and the workload.

    Raises:
        InputError: If a model does not load.
    """
    workload = recipe.workload
    workload.check_available()
    calls = {name: _runner(name, recipe) for name in models}
    timed = measure(calls, calls[models[0]], workload)
    table = Table("model", "latency_ms", "10-90 %", "ratio", title=f"{workload} · {device_name(workload)}")
    for name in models:
        t = timed[name]
        spread = f"{t.latency_ms_p10:.3g} - {t.latency_ms_p90:.3g}"
        table.add_row(name, f"{t.latency_ms:.3g}", spread, f"{t.ratio:.3f}")
    return table


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

"""`nas bench`: measures any Hugging Face models of a recipe's task on its workload."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.table import Table
from safetensors import SafetensorError

from nas.modeling.known_layouts import adopt
from nas.modeling.longer_positions import num_positions
from nas.recipe.objectives import FOOTPRINTS
from nas.recipe.schema import Recipe
from nas.runs.files import write_text
from nas.runs.isolated import run_in_subprocess
from nas.runs.progress import ProgressCallback, progress
from nas.tasks.dummy_inputs import dummy_inputs
from nas.tasks.loading import load_config
from predictors import Timing, Workload, device_name, measure
from predictors.measurement.budget import Budget
from predictors.measurement.measure import MAX_ROUNDS
from predictors.measurement.plan import Plan, load
from predictors.measurement.prepare import check_runtime
from predictors.measurement.rounds import Rounds, by_name
from predictors.measurement.runtimes import RUNTIMES
from predictors.measurement.timing import REFERENCE, combine_timings, noise_warning
from search_spaces import TASKS, InputError
from search_spaces.errors import short_error
from search_spaces.inputs import Inputs

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PRECISION = 0.02
"""Default of the wanted half-width of the confidence interval of a ratio, relative."""
SHOWN = ("memory_mb", "energy_mj")
"""Measured costs with a column in the terminal; a file has all."""
PASSES = 2
"""Times that each model is loaded and measured."""


@dataclass(frozen=True)
class BenchRow:
    """One model of a comparison.

    Attributes:
        model: Folder or hub id; ratios are relative to the first model of a comparison.
        timing: Its latency, its ratio to the first model's latency and their intervals; each model is loaded twice,
            and the intervals cover both.
        memory_mb: Peak memory that loading it and running the workload adds to a new process, without libraries; on a
            GPU, the peak memory there. None: not measured.
        energy_mj: Energy of one pass above the idle device. None: no counter can be read.
        load_ms: Time to load it in a new process whose libraries are imported.
        first_inference_ms: Time of its first pass there.
    """

    model: str
    timing: Timing
    memory_mb: float | None
    energy_mj: float | None
    load_ms: float
    first_inference_ms: float
    workload: Workload
    device_name: str

    @property
    def samples_per_second(self) -> float:
        """Throughput of calls one after the other."""
        return self.workload.batch_size / self.timing.latency_ms * 1e3

    def to_dict(self) -> dict[str, Any]:
        """One flat row with every value and the workload."""
        row = {"model": self.model, **asdict(self.timing), "samples_per_second": self.samples_per_second}
        row |= {name: getattr(self, name) for name in FOOTPRINTS}
        return row | self.workload.to_dict() | {"device_name": self.device_name}


def bench_rows(
    models: Sequence[str], recipe: Recipe, precision: float = PRECISION, minutes: float | None = None
) -> list[BenchRow]:
    """Measures models in interleaved rounds with the first one, then `FOOTPRINTS` of each in a process of its own.

    Args:
        models: Folders or hub ids that the task's auto class loads.
        recipe: Gives the task and its ``workload``.
        precision: Wanted half-width of the confidence interval of each ratio, relative; see `bench_noise_warning`.
        minutes: Upper bound on the time to measure latencies; None: none, but 60 rounds of each of two loadings.

    Raises:
        InputError: If a model does not load or fit the workload, or the workload cannot run on this device.
    """
    workload = recipe.workload
    workload.check_available()
    check_runtime(workload)
    with tempfile.TemporaryDirectory(prefix="nas-bench-") as work:
        folder, plan = Path(work), _plan(models, recipe, precision, Path(work), minutes)
        with progress("latency") as report:
            timings = _timings(plan, folder, report)
        footprints = {}
        with progress("memory") as report:
            for number, name in enumerate(plan.models, 1):
                arguments = ("predictors.measurement.plan", "footprint", str(folder), name)
                footprints[name] = run_in_subprocess(*arguments, what=name)
                report(number, len(plan.models), name)
    return [
        BenchRow(n, timings[n], **footprints[n], workload=workload, device_name=device_name(workload)) for n in timings
    ]


def bench_noise_warning(rows: Sequence[BenchRow], precision: float) -> str:
    """A warning if rows are less precise than wanted, else an empty text."""
    return noise_warning({row.model: row.timing for row in rows[1:] or rows}, precision)


def bench_table(rows: Sequence[BenchRow]) -> Table:
    """Rows as a table for the terminal."""
    columns = ["model", "latency_ms", "10-90 %", "ratio", "95 %", "samples/s", *SHOWN]
    value = "ratio" if rows[1:] else "latency, relative to it,"
    notes = [f"10-90 %: percentiles of rounds. 95 %: confidence interval of the {value} over two loads of each model."]
    for name in SHOWN:
        if all(getattr(row, name) is None for row in rows):
            columns.remove(name)
            notes.append(f"{name}: not measured, this device has no counter that can be read.")
    title = f"{rows[0].workload} · {rows[0].device_name}"
    table = Table(title=title, caption=" ".join(notes), caption_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column(columns[0], overflow="fold")
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = _cells(row)
        table.add_row(*(cells[name] for name in columns))
    return table


def _cells(row: BenchRow) -> dict[str, str]:
    t = row.timing
    footprint: dict[str, float | None] = {name: getattr(row, name) for name in SHOWN}
    return {
        "model": row.model,
        "latency_ms": f"{t.latency_ms:.3g}",
        "10-90 %": f"{t.latency_ms_p10:.3g} - {t.latency_ms_p90:.3g}",
        "ratio": f"{t.ratio:.3f}",
        "95 %": f"{t.ratio_low:.3f} - {t.ratio_high:.3f}",
        "samples/s": f"{row.samples_per_second:.3g}",
        **{name: "not measured" if value is None else f"{value:.3g}" for name, value in footprint.items()},
    }


def write_csv(rows: Sequence[BenchRow], file: Path) -> None:
    """Writes rows with all digits."""
    import pandas as pd

    write_text(file, pd.DataFrame([row.to_dict() for row in rows]).to_csv(index=False))


def _plan(names: Sequence[str], recipe: Recipe, precision: float, folder: Path, minutes: float | None) -> Plan:
    """Writes the inputs of every model and, for a runtime of files, its file; others load the model's own folder."""
    import transformers

    auto, models, inputs = TASKS[recipe.task.type].auto_class, {}, {}
    for number, name in enumerate(dict.fromkeys(names)):
        arrays = _inputs(name, recipe)
        fed = {key: tensor.numpy() for key, tensor in arrays.items()}
        models[name], inputs[name] = str(Path(name).resolve()) if Path(name).exists() else name, f"{number}.npz"
        if not recipe.workload.needs_torch:
            try:
                model = getattr(transformers, auto).from_pretrained(name, trust_remote_code=False, dtype=torch.float32)
            except (OSError, ValueError, SafetensorError) as error:
                raise InputError(f"model `{name}` does not load: {short_error(error)}") from None
            target = folder / f"{number}"
            target.mkdir()
            runtime = RUNTIMES[recipe.workload.runtime]
            file, fed = runtime.write(model.eval(), arrays, recipe.workload, target)
            models[name] = str(file)
        np.savez(folder / inputs[name], **fed)  # type: ignore[arg-type]
    reference, trust = next(iter(models)), recipe.trust_remote_code
    plan = Plan(
        recipe.workload, auto, models, inputs, reference, PASSES, precision, remote_code=trust, minutes=minutes
    )
    plan.write(folder)
    return plan


def _inputs(name: str, recipe: Recipe) -> dict[str, torch.Tensor]:
    """The workload's input of one model.

    Raises:
        InputError: If the model has another task, fewer positions than the workload has tokens, or too little memory.
    """
    config, length = load_config(name, recipe.trust_remote_code), recipe.workload.sequence_length
    limit = _positions(config)
    if TASKS[recipe.task.type].reads_text and (length is None or (limit is not None and length > limit)):
        law = "an integer" if limit is None else f"at most the {limit} positions of `{name}`"
        raise InputError(
            f"`workload.sequence_length` must be {law}, but got {'null' if length is None else length}; change it or "
            "leave the model out."
        )
    try:
        return dummy_inputs(recipe.task.type, config, recipe.workload)
    except AttributeError:
        raise InputError(
            f"model `{name}` must take the inputs of `task.type` {recipe.task.type}, but a `{config.model_type}` does "
            "not; leave it out, or give --workload a recipe of its task."
        ) from None


def _positions(config: PreTrainedConfig) -> int | None:
    """Maximum number of tokens of a model, by its family or its config; None if unlimited or unknown."""
    family = adopt(config.model_type.removeprefix("nas_"))
    if family is None:
        return num_positions(config)
    return Inputs(family, getattr(config, family.sub_config) if family.sub_config else config).max_sequence_length


def _timings(plan: Plan, folder: Path, report: ProgressCallback = lambda done, total, note: None) -> dict[str, Timing]:
    """Model -> its timing over passes that each load all models again; on the scale of the faster pass.

    The combined interval of all passes must reach the precision. Passes before the last must reach half of it; the
    other half is left for the difference between their medians. A single model has the interval of its latency,
    relative to it.
    """
    passes: list[dict[str, Timing]] = []
    budget = Budget.of_minutes(plan.minutes)
    for number in range(plan.passes):
        part = None if plan.minutes is None else budget.share(1 / (plan.passes - number))
        first, *others = [load(folder, plan, name) for name in plan.models]
        calls = dict(zip(list(plan.models)[1:], others, strict=True))
        wanted = plan.precision if number == plan.passes - 1 else plan.precision / 2
        previous = _combine_passes(passes) if passes else None
        on_round = partial(_report_round, report, number, plan.passes)
        options: dict[str, Any] = {"seed": number, "previous": previous, "on_round": on_round, "budget": part}
        timed = measure(calls, first, plan.workload, precision=wanted, **options)
        passes.append(timed if calls else {REFERENCE: timed[REFERENCE].as_milliseconds})
    if len(plan.models) == 1:
        reference = _combine_passes(passes)[REFERENCE]
        low, high = reference.ratio_low / reference.ratio, reference.ratio_high / reference.ratio
        return {plan.reference: replace(reference, ratio=1.0, ratio_low=low, ratio_high=high)}
    scale_ms = min(timed[REFERENCE].raw_ms for timed in passes)
    timings = _combine_passes(
        [{name: timing.rescaled(scale_ms) for name, timing in timed.items()} for timed in passes]
    )
    reference = replace(timings.pop(REFERENCE), ratio=1.0, ratio_low=1.0, ratio_high=1.0)
    return {plan.reference: reference, **timings}


def _report_round(report: ProgressCallback, number: int, passes: int, rounds: Rounds) -> None:
    """Each pass has at most `MAX_ROUNDS` rounds, and ends earlier once the precision is reached."""
    done = max(len(own) for own in by_name(rounds.samples).values())
    total = passes * MAX_ROUNDS
    report(min(number * MAX_ROUNDS + done, total), total, f"pass {number + 1}, round {done}")


def _combine_passes(passes: Sequence[Mapping[str, Timing]]) -> dict[str, Timing]:
    return {name: reduce(combine_timings, (timed[name] for timed in passes)) for name in passes[0]}

"""Deployment check: runs all formats of an exported folder and compares them with the values in its subnet.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from nas.exports.card import write_card
from nas.exports.export import (
    TOLERANCE,
    ReloadError,
    outputs_in_subprocess,
    padded_inputs,
    provenance,
    supernet_outputs,
    weights_of,
)
from nas.exports.formats import formats_in, forward_arguments, load_export, size_mb
from nas.exports.model_info import by_workload, info_of_recipe, read_export_info
from nas.exports.runtime_model import RuntimeModel, time_with_parent
from nas.exports.trust import require_trusted_folder, require_trusted_recipe
from nas.modeling.own_code import register_own_code
from nas.recipe.objectives import base_name, cost_name, format_value
from nas.runs.files import write_json
from nas.runs.isolated import run_in_subprocess
from nas.runs.run import Run
from nas.supernets.load import load_supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from predictors.measurement.rounding import TOLERANCE as CONVERSION_TOLERANCE
from predictors.measurement.rounding import allowed_difference, largest_difference
from predictors.measurement.runtimes import FORMATS
from search_spaces import InputError, SubnetConfig

LATENCY_TOLERANCE = 1.25
"""Allowed ratio of the measured to the stated latency plus its spread: other work slows models unevenly."""


@dataclass
class FormatCheck:
    """The results of one format of a folder.

    Attributes:
        values: Name of a metric or cost -> measured value.
        errors: Name -> its error, as in `nas.fronts.point.Point`.
        difference: Largest absolute difference of an output from the reference; None without a reference.
        allowed: Largest allowed difference, see `predictors.measurement.rounding.allowed_difference`.
        failure: Why the format does not load; empty if it does.
    """

    values: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    difference: float | None = None
    allowed: float = CONVERSION_TOLERANCE
    failure: str = ""


def check_folder(folder: Path, run: Run, trust: bool = False) -> tuple[dict[str, FormatCheck], list[str]]:
    """Reloads, compares, measures and scores all formats of a model; adds new values to the card of an export.

    Each format runs in a clean process. The Hugging Face model is compared with the supernet's subnetwork (unless it
    was fine-tuned later), every other format with the Hugging Face model. Latencies are measured together with the
    parent's. Any other Hugging Face model of the run's task states nothing; its formats are compared with it.

    Args:
        folder: The export, or another model.
        run: The run it came from, or of the same task.
        trust: Whether code in the folder, and functions that the recipe of the run names, may run.

    Returns:
        Format -> its results; and one message per failed check.

    Raises:
        InputError: If the folder is not a model, or holds code that is not trusted.
    """
    info, context = _info(folder, run), TaskContext(run.recipe)
    if "dtype" in info:
        context.dtype = getattr(torch, info["dtype"])
    if not trust:
        require_trusted_folder(folder)
        require_trusted_recipe(run.folder, run.recipe)
    register_own_code(str(folder), trust)
    checks = {format_name: FormatCheck() for format_name in formats_in(folder)}
    _reload(folder, info, run, context, checks)
    working = {
        format_name: path for format_name, path in formats_in(folder).items() if not checks[format_name].failure
    }
    _score(working, context.of(SubnetConfig.from_dict(info["subnet"])) if "subnet" in info else context, checks)
    _measure(folder, working, info, run, checks)
    for format_name, path in working.items():
        checks[format_name].values["size_mb"] = size_mb(format_name, path)
    failures = failed_checks(info, checks)
    if not failures and "subnet" in info:
        _add_to_card(folder, info, checks)
    return checks, failures


def _info(folder: Path, run: Run) -> dict[str, Any]:
    """The content of subnet.json; of another model, that it states nothing, with the workload of the run."""
    if (folder / "subnet.json").is_file() or not (folder / "config.json").is_file():
        return read_export_info(folder)
    return {**info_of_recipe(run.recipe), "measured": False, "parent": provenance(run)["parent"]}


def failed_checks(info: Mapping[str, Any], checks: Mapping[str, FormatCheck]) -> list[str]:
    """Returns one message per failed check: a format fails or differs, or a stated value is not reached."""
    lines = []
    for format_name, check in checks.items():
        if check.failure:
            again = "`nas export`" if format_name == "torch" else f"`nas convert --to {format_name}`"
            lines.append(f"{format_name} does not run ({check.failure.rstrip('.')}), {again} writes it again")
        elif check.difference is not None and not check.difference <= check.allowed:
            lines.append(
                f"{format_name} must give equal outputs within {check.allowed:.2g}, but they differ by "
                f"{check.difference:.3g}"
            )
        stated = info.get("formats", {}).get(
            format_name, info if format_name == "torch" and info["measured"] else None
        )
        for name, value in (stated["values"] if stated and not check.failure else {}).items():
            if name in check.values and not is_within_tolerance(
                name, value, check.values[name], stated["errors"].get(name, 0.0)
            ):
                values = [format_value(name, v) for v in (value, check.values[name])]
                lines.append(f"{format_name} states {name} {values[0]}, but it is {values[1]}")
    return lines


def is_within_tolerance(name: str, stated: float, measured: float, error: float) -> bool:
    """Whether a measured value agrees with the stated one.

    Tolerances: half a standard error for a metric, as processors round differently; a factor of `LATENCY_TOLERANCE` on
    the stated latency plus its spread; 1 % and 20 kB for the size; 50 % and 20 MB for memory.
    """
    if not math.isfinite(measured):
        return False
    name = base_name(name)
    if name == "latency_ms":
        return measured <= LATENCY_TOLERANCE * (stated + error)
    if name == "size_mb":
        return abs(measured - stated) <= 0.01 * stated + 0.02
    if name == "memory_mb":
        return measured <= 1.5 * stated + 20
    return abs(measured - stated) <= max(0.5 * error, 1e-6 * abs(stated))


def _reload(
    folder: Path, info: Mapping[str, Any], run: Run, context: TaskContext, checks: dict[str, FormatCheck]
) -> None:
    """Runs each format in a clean process, and stores the largest difference of its outputs from the reference."""
    inputs, reference = padded_inputs(context), None
    if "subnet" in info:
        subnet = SubnetConfig.from_dict(info["subnet"])
        weights = weights_of(run, load_supernet(run, context)[0], subnet, context)
        inputs, active = supernet_outputs(weights, subnet, context)
        reference = None if "inherited" in info else active
    for format_name, path in formats_in(folder).items():
        try:
            outputs = outputs_in_subprocess(format_name, path, context.recipe.task.type, inputs)
        except ReloadError as error:
            checks[format_name].failure = str(error)
            continue
        if checks["torch"].failure:
            continue  # there is no model to compare with
        spread = 0.0 if format_name == "torch" else FORMATS[format_name].spread
        if spread and reference is not None:
            outputs, of_format = _real_tokens(outputs, inputs), _real_tokens(reference, inputs)
            checks[format_name].allowed = spread * max(float(value.std()) for value in of_format.values())
            checks[format_name].difference = largest_difference(outputs, of_format)
            continue
        checks[format_name].allowed = _allowed(format_name, folder, info, inputs)
        if reference is not None:
            checks[format_name].difference = largest_difference(outputs, reference)
        if format_name == "torch":
            reference = outputs


def _real_tokens(outputs: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs of the tokens that are no padding."""
    real = inputs["attention_mask"].bool()
    return {name: value[real] for name, value in outputs.items()}


def _allowed(format_name: str, folder: Path, info: Mapping[str, Any], inputs: Mapping[str, torch.Tensor]) -> float:
    """Returns how far the outputs of a format may be from those of its reference."""
    if format_name == "torch":
        return TOLERANCE
    model = load_export(folder, info["task"])
    if not FORMATS[format_name].keeps_dtype:
        model.float()
    return allowed_difference(model, [forward_arguments(model, inputs)], int8=FORMATS[format_name].rounds)


def _score(working: Mapping[str, Path], context: TaskContext, checks: dict[str, FormatCheck]) -> None:
    """Computes the metrics of each format on the held-out split."""
    for format_name, path in working.items():
        try:
            model = RuntimeModel.load(format_name, path, context)
            scores = score(model, context.splits.test, context.recipe.metric_names)
        except InputError as error:
            checks[format_name].failure = str(error)
            continue
        for name, scored in scores.items():
            checks[format_name].values[name], checks[format_name].errors[name] = scored.value, scored.standard_error


def _measure(
    folder: Path, working: Mapping[str, Path], info: Mapping[str, Any], run: Run, checks: dict[str, FormatCheck]
) -> None:
    """Measures memory and latency of each format under each workload, unless another device has measured it.

    Latencies are measured together with the parent's and scaled to its stated latency.
    """
    remote = {target.name for target in run.targets if target.is_remote}
    for workload, own in by_workload(info).items():
        if workload in remote:
            continue
        for format_name in working if "subnet" in info else ():
            memory_mb = run_in_subprocess(
                *("nas.exports.runtime_model", "memory_mb", str(folder), format_name, workload),
                what=f"{folder} ({format_name})",
            )
            if memory_mb is not None:
                checks[format_name].values[cost_name("memory_mb", workload)] = memory_mb
        name = cost_name("latency_ms", workload)
        stated = (info.get("parent") or {"values": {}})["values"].get(name)
        for format_name, (latency_ms, error) in time_with_parent(run.parent, working, own, stated).items():
            if format_name in checks:
                checks[format_name].values[name], checks[format_name].errors[name] = latency_ms, error


def _add_to_card(folder: Path, info: dict[str, Any], checks: Mapping[str, FormatCheck]) -> None:
    """Adds values of formats that have none yet to subnet.json and the card."""
    formats = dict(info.get("formats", {}))
    for format_name, check in checks.items():
        formats.setdefault(format_name, {"values": check.values, "errors": check.errors})
    info["formats"] = formats
    write_json(folder / "subnet.json", info)
    write_card(folder, info)


def check_table(checks: Mapping[str, FormatCheck]) -> Table:
    """Returns a table with one row per format."""
    names = list(dict.fromkeys(name for check in checks.values() for name in sorted(check.values)))
    table = Table("format", *names, "differs by", box=None, padding=(0, 2, 0, 0))
    for format_name, check in checks.items():
        cells = [format_value(n, check.values[n], check.errors.get(n)) if n in check.values else "–" for n in names]
        difference = "–" if check.difference is None else f"{check.difference:.2g}"
        table.add_row(format_name, *cells, check.failure or difference)
    return table


def raise_if_failed(folder: Path, failures: list[str]) -> None:
    """Raises InputError with all failed checks, if there are any."""
    if failures:
        raise InputError(f"`{folder}` fails its checks: {'; '.join(failures)}.")

"""Deploy check: an exported folder, in every runtime it has a file for, held to the figures that it states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from nas.exports.card import write_card
from nas.exports.export import TOLERANCE, ReloadError, active_outputs, outputs_elsewhere
from nas.exports.formats import present, read_story, size_mb
from nas.exports.runtime_model import RuntimeModel, timed_beside
from nas.recipe.objectives import format_value
from nas.runs.files import write_json
from nas.runs.isolated import run_in_subprocess
from nas.runs.run import Run
from nas.supernets.load import load_supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from predictors.measurement.onnx_export import TOLERANCE as ONNX_TOLERANCE
from search_spaces import InputError, SubnetConfig
from search_spaces.dimensions.bits import ROUNDS_ACTIVATIONS

SLOWER = 1.25
"""How many times the stated latency a measured one may be, beside its spread: other work slows a model unevenly."""


@dataclass
class Checked:
    """What was found of one format of a folder.

    Attributes:
        values: Figure -> measured value.
        errors: Figure -> its spread, as in `nas.fronts.point.Point`.
        difference: The largest difference of a logit from what it must equal; None where nothing is its reference.
        failure: Why it does not load.
    """

    values: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    difference: float | None = None
    failure: str = ""


def check_folder(folder: Path, run: Run) -> tuple[dict[str, Checked], list[str]]:
    """Reloads, compares, times and scores an export, and states in its card what it did not state yet.

    Each format runs in a clean process. The Hugging Face model is compared with the supernet's subnetwork (unless it
    was fine-tuned since), every other format with the Hugging Face model. Latencies are measured beside the parent.

    Returns:
        Format -> what was found, and one line for each figure that does not hold.

    Raises:
        InputError: If the folder is not an export.
    """
    story, context = read_story(folder), TaskContext(run.recipe)
    found = {form: Checked() for form in present(folder)}
    _reload(folder, story, run, context, found)
    working = {form: path for form, path in present(folder).items() if not found[form].failure}
    _score(working, context, found)
    _measure(folder, working, story, run, found)
    for form, path in working.items():
        found[form].values["size_mb"] = size_mb(form, path)
    broken = broken_promises(story, found)
    if not broken:
        _state(folder, story, found)
    return found, broken


def broken_promises(story: Mapping[str, Any], found: Mapping[str, Checked]) -> list[str]:
    """What does not hold of an export: a format that fails or differs, or a stated figure that is not reached."""
    lines = []
    for form, checked in found.items():
        limit = TOLERANCE if form == "torch" else ONNX_TOLERANCE
        rounds = form == "int8" or (form != "torch" and {*story["subnet"].get("bits", ())} & {*ROUNDS_ACTIVATIONS})
        if checked.failure:
            lines.append(f"{form} does not run: {checked.failure}")
        elif checked.difference is not None and not (rounds or checked.difference <= limit):
            lines.append(
                f"{form} must give equal outputs within {limit:g}, but they differ by {checked.difference:.3g}"
            )
        stated = story.get("formats", {}).get(form, story if form == "torch" and story["measured"] else None)
        for name, value in (stated["values"] if stated and not checked.failure else {}).items():
            if name in checked.values and not holds(
                name, value, checked.values[name], stated["errors"].get(name, 0.0)
            ):
                figures = [format_value(name, v) for v in (value, checked.values[name])]
                lines.append(f"{form} states {name} {figures[0]}, but it is {figures[1]}")
    return lines


def holds(name: str, stated: float, found: float, error: float) -> bool:
    """Whether a stated figure holds.

    A quality must be found again within half of its standard error, as processors round differently; a latency may be
    `SLOWER` times the stated one and its spread; a size within a hundredth; memory within a half and 20 MB.
    """
    if not math.isfinite(found):
        return False
    if name == "latency_ms":
        return found <= SLOWER * (stated + error)
    if name == "size_mb":
        return abs(found - stated) <= 0.01 * stated + 0.02
    if name == "memory_mb":
        return found <= 1.5 * stated + 20
    return abs(found - stated) <= max(0.5 * error, 1e-6 * abs(stated))


def _reload(folder: Path, story: Mapping[str, Any], run: Run, context: TaskContext, found: dict[str, Checked]) -> None:
    """Runs each format in a clean process; notes how far its outputs are from their reference."""
    supernet, _ = load_supernet(run, context)
    inputs, active = active_outputs(supernet, SubnetConfig.from_dict(story["subnet"]), context)
    reference: dict[str, torch.Tensor] | None = None if "inherited" in story else active
    for form, path in present(folder).items():
        try:
            outputs = outputs_elsewhere(form, path, context.auto_class, inputs)
        except ReloadError as error:
            found[form].failure = str(error)
            continue
        if reference is not None:
            found[form].difference = max(float((outputs[n] - reference[n]).abs().max()) for n in reference)
        if form == "torch":
            reference = outputs


def _score(working: Mapping[str, Path], context: TaskContext, found: dict[str, Checked]) -> None:
    """Qualities on the held-out split."""
    for form, path in working.items():
        model = RuntimeModel.load(form, path, context)
        try:
            scores = score(model, context.splits.test, context.recipe.metric_names)
        except InputError as error:
            found[form].failure = str(error)
            continue
        for name, scored in scores.items():
            found[form].values[name], found[form].errors[name] = scored.value, scored.standard_error


def _measure(
    folder: Path, working: Mapping[str, Path], story: Mapping[str, Any], run: Run, found: dict[str, Checked]
) -> None:
    """Memory, and latencies beside the parent's on the scale of its stated one; not where the stated ones are of a
    device elsewhere."""
    if run.is_remote:
        return
    for form in working:
        memory_mb = run_in_subprocess(
            "nas.exports.runtime_model", "memory_mb", str(folder), form, what=f"{folder} ({form})"
        )
        if memory_mb is not None:
            found[form].values["memory_mb"] = memory_mb
    stated = (story.get("parent") or {"values": {}})["values"].get("latency_ms")
    for form, (latency_ms, error) in timed_beside(run.parent, working, story, stated).items():
        if form in found:
            found[form].values["latency_ms"], found[form].errors["latency_ms"] = latency_ms, error


def _state(folder: Path, story: dict[str, Any], found: Mapping[str, Checked]) -> None:
    """Adds what the folder did not state yet to its subnet.json and card."""
    formats = dict(story.get("formats", {}))
    for form, checked in found.items():
        formats.setdefault(form, {"values": checked.values, "errors": checked.errors})
    story["formats"] = formats
    write_json(folder / "subnet.json", story)
    write_card(folder, story)


def checked_table(found: Mapping[str, Checked]) -> Table:
    """One row a format."""
    names = list(dict.fromkeys(name for checked in found.values() for name in sorted(checked.values)))
    table = Table("format", *names, "differs by", box=None, padding=(0, 2, 0, 0))
    for form, checked in found.items():
        cells = [
            format_value(n, checked.values[n], checked.errors.get(n)) if n in checked.values else "–" for n in names
        ]
        difference = "–" if checked.difference is None else f"{checked.difference:.2g}"
        table.add_row(form, *cells, checked.failure or difference)
    return table


def require_whole(folder: Path, broken: list[str]) -> None:
    """Raises InputError with what does not hold, if anything."""
    if broken:
        raise InputError(f"`{folder}` does not hold what it states: {'; '.join(broken)}.")

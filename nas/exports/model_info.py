"""What is known of a model folder: the subnet.json of an export, the recipe of a run's parent, else its config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.fronts.point import require_numbers
from nas.modeling.longer_positions import num_positions
from nas.modeling.registration import head_task
from nas.recipe.schema import Recipe
from nas.runs.files import read_json
from nas.runs.run import Run, is_run
from nas.tasks.loading import load_config
from predictors import Workload
from search_spaces import FAMILIES, TASKS, InputError, SubnetConfig

ExportInfo = Mapping[str, Any]
"""The content of an export's subnet.json, or what is known of another model."""
USUAL_TOKENS = 128
"""Tokens of the inputs of a model of which nothing is known but its config."""


def model_info(folder: Path) -> ExportInfo:
    """Reads the subnet.json of an export; for any other Hugging Face model, what a format of it needs.

    Returns:
        At least ``task``, ``workload`` and ``max_length``.

    Raises:
        InputError: If the folder holds no model, or one without the head of a task.
    """
    if (folder / "subnet.json").is_file() or not (folder / "config.json").is_file():
        return read_export_info(folder)
    if is_run(folder.resolve().parent):
        return info_of_recipe(Run(folder.resolve().parent).recipe)
    config = load_config(str(folder))
    known = FAMILIES.get(config.model_type)
    task = head_task(config, known.tasks if known else tuple(TASKS))
    if task is None:
        raise InputError(
            f"`{folder}` must be an export or a model with the head of a task ({', '.join(TASKS)}), but its "
            f"config.json names {config.architectures or 'no architecture'}."
        )
    length = min(num_positions(config) or USUAL_TOKENS, USUAL_TOKENS) if TASKS[task].reads_text else None
    return {"task": task, "workload": Workload(sequence_length=length).to_dict(), "max_length": length or 1}


def info_of_recipe(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says of the models of its run."""
    task = recipe.task
    info = {"task": task.type, "workload": recipe.workload.to_dict(), "max_length": task.max_length}
    named = {name: {"workload": each.to_dict()} for name, each in recipe.workloads.items()}
    return {**info, "workloads": named} if named else info


def by_workload(info: ExportInfo) -> dict[str, ExportInfo]:
    """Name of a workload -> the info with that ``workload`` and its ``device``; an only one has an empty name."""
    return {name: {**info, **own} for name, own in info.get("workloads", {"": {}}).items()}


def read_export_info(folder: Path) -> dict[str, Any]:
    """Reads the subnet.json of an export.

    Raises:
        InputError: If the folder is not an export.
    """
    if not (folder / "subnet.json").is_file():
        raise InputError(f"`{folder}` must be an export, but it has no subnet.json; `nas export` writes one.")
    return dict(read_json(folder / "subnet.json", parse=_checked_info))


def _checked_info(data: Any) -> dict[str, Any]:
    """The content of subnet.json; raises what is in `DAMAGE` unless it is what an export says of itself."""
    SubnetConfig.from_dict(data["subnet"])
    for name, own in by_workload(data).items():
        require_numbers("workloads", {name or "workload": 0})
        Workload.from_dict(own["workload"])
    for stated in (data, data.get("parent"), *data.get("formats", {}).values()):
        for name in ("values", "errors") if stated is not None else ():
            require_numbers(name, stated[name])
    texts = [data[name] for name in ("task", "key", "name", "device", "split")]
    if data["task"] not in TASKS or not all(isinstance(text, str) for text in texts):
        raise TypeError("`task`, `key`, `name`, `device` and `split` must be texts, `task` a known one")
    if data.get("dtype", "float32") not in ("float32", "bfloat16", "float16"):
        raise ValueError("`dtype` must be float32, bfloat16 or float16")
    if type(data["measured"]) is not bool or type(data.get("max_length", 1)) is not int:
        raise TypeError("`measured` must be true or false, `max_length` a whole number")
    return dict(data)

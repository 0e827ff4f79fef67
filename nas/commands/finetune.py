"""Fine-tune an exported subnetwork on its task, with its parent as the teacher."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from nas.exports.card import write_card
from nas.exports.formats import read_export_info, size_mb
from nas.exports.runtime_model import PARENT, time_with_parent
from nas.recipe.objectives import COSTS
from nas.recipe.schema import Recipe
from nas.runs import processes
from nas.runs.files import delete, read_json, replace_folder, write_json
from nas.runs.finetuned import Finetuned, save_finetuned
from nas.runs.progress import print_line, progress
from nas.runs.run import Run
from nas.stages.check import check_recipe
from nas.stages.report import run_report
from nas.supernets.training import model_trainer, train, training_device
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import Score, score
from predictors import Workload, device_name
from search_spaces import InputError


def finetune(folder: Path, recipe: Recipe, run: Path, out: Path) -> tuple[dict[str, Score], dict[str, Any]]:
    """Trains an export for the recipe's ``parent`` epochs, measures it anew and writes it to another folder.

    What it reaches is kept in the run, whose report and tables then show it beside what it inherited.

    Args:
        folder: What `nas export` wrote.
        recipe: Gives the data and the training settings.
        run: The run it came from; its parent is the teacher, and latencies are measured beside it.
        out: Folder to write; replaced if it is an earlier export.

    Returns:
        Qualities on the held-out split before, and the new subnet.json with all that was measured after.

    Raises:
        InputError: If the folder is not an export, or ``out`` holds something else.
    """
    if out.exists() and not (out / "subnet.json").exists():
        raise InputError(f"`{out}` exists and is not an export; give another folder with --out.")
    info = read_export_info(folder)
    Workload.from_dict(info["workload"]).check_available()
    context, parent = check_recipe(recipe), Run(run).parent
    model = getattr(transformers, context.auto_class).from_pretrained(folder, trust_remote_code=False)
    before = score(model.to(training_device()), context.splits.test, recipe.metric_names)
    work = out.with_name(f".{out.name}.partial")
    if processes.is_main():
        _prepare_work_folder(
            work, {"export": _weights_hash(folder), "teacher": _weights_hash(parent), "recipe": recipe.to_yaml()}
        )
    processes.barrier()
    trainer = model_trainer(
        model,
        recipe.parent,
        work / "checkpoints",
        context.training_set(recipe.parent),
        context.splits.task,
        recipe.seed,
        teacher=context.load_model(parent),
    )
    with progress("finetune") as report:
        train(trainer, report, Run(run).logs / out.name)
    processes.exit_other_processes()
    model.save_pretrained(work)
    context.processor.save_pretrained(work)
    after = score(model, context.splits.test, recipe.metric_names)
    told = updated_export_info(info, measured_export_info(work, parent, info, after, context), recipe)
    write_json(work / "subnet.json", told)
    write_card(work, told)
    replace_folder(work, out)
    delete(out / "checkpoints")
    _record_in_run(Run(run), recipe, Finetuned(info["key"], str(out), values_of(after), errors_of(after)))
    return before, told


def _record_in_run(run: Run, recipe: Recipe, found: Finetuned) -> None:
    """Notes in the run what its export reaches, if that was scored on the run's own held-out split."""
    if recipe.task.test != run.recipe.task.test:
        print_line(f"not shown in {run.folder}: it reports on {run.recipe.task.test}, this on {recipe.task.test}")
        return
    save_finetuned(run, found)
    if run.report.is_file():
        run_report(run)


def measured_export_info(
    folder: Path, parent: Path, info: Mapping[str, Any], scores: Mapping[str, Score], context: TaskContext
) -> dict[str, Any]:
    """What a subnet.json says of a model once it was fine-tuned: its qualities, its latency beside its parent's, size.

    On another device than that of its story, the parent's latency is told anew as well.
    """
    here = device_name(Workload.from_dict(info["workload"]))
    told = info["parent"] or {"values": {}, "errors": {}}
    stated = told["values"].get("latency_ms") if here == info["device"] else None
    timed = time_with_parent(parent, {"torch": folder}, info, stated)
    (latency_ms, spread), (parent_ms, parent_spread) = timed["torch"], timed[PARENT]
    values = {"latency_ms": latency_ms, "size_mb": size_mb("torch", folder)}
    beside = {
        "values": {**told["values"], "latency_ms": parent_ms},
        "errors": {**told["errors"], "latency_ms": parent_spread},
    }
    return {
        "values": values | values_of(scores),
        "errors": {"latency_ms": spread} | errors_of(scores),
        "measured": True,
        "predicted": False,
        "device": here,
        "split": Path(context.recipe.task.test).name,
        "max_length": context.recipe.task.max_length,
        "parent": told if stated is not None else beside,
    }


def updated_export_info(info: Mapping[str, Any], new: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A subnet.json with what `measured_export_info` found; the figures it came with are kept as ``inherited``."""
    counts = {name: value for name, value in info["values"].items() if name in COSTS}
    values = {**counts, **new["values"]}
    bounds = {name: bound for name, bound in recipe.bounds.items() if name in values}
    feasible = all(bound.violation(values[name]) <= 0 for name, bound in bounds.items())
    rest = {name: value for name, value in info.items() if name != "formats"}
    inherited = {part: info[part] for part in ("values", "errors")}
    return {**rest, **new, "values": values, "feasible": feasible, "inherited": inherited}


def values_of(scores: Mapping[str, Score]) -> dict[str, float]:
    """Quality -> value."""
    return {name: found.value for name, found in scores.items()}


def errors_of(scores: Mapping[str, Score]) -> dict[str, float]:
    """Quality -> standard error."""
    return {name: found.standard_error for name, found in scores.items()}


def _prepare_work_folder(work: Path, identity: dict[str, str]) -> None:
    """Makes the work folder; what a killed fine-tuning left there is kept if it was of the same model and recipe."""
    file = work / "checkpoints" / "identity.json"
    if not file.is_file() or read_json(file) != identity:
        shutil.rmtree(work, ignore_errors=True)
        file.parent.mkdir(parents=True)
        write_json(file, identity)


def _weights_hash(folder: Path) -> str:
    """SHA-256 of a model folder's weights."""
    total = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()

"""`nas finetune`: fine-tunes an exported subnetwork on its task, with its parent as the teacher."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.exports.card import write_card
from nas.exports.formats import load_export, require_replaceable, size_mb
from nas.exports.model_info import by_workload, read_export_info
from nas.exports.runtime_model import PARENT, time_with_parent
from nas.exports.vector_map import add_vector_map
from nas.modeling.cast import cast_weights
from nas.recipe.objectives import cost_name, is_cost
from nas.recipe.schema import Recipe
from nas.runs import processes
from nas.runs.files import check_place, delete, digest, read_json, replace_folder, write_json
from nas.runs.finetuned import Finetuned, save_finetuned
from nas.runs.progress import print_line, progress
from nas.runs.run import Run
from nas.stages.check import check_recipe
from nas.stages.report import run_report
from nas.supernets.adapters import merged, with_adapters
from nas.supernets.device import training_device
from nas.supernets.training import model_trainer, train
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import Score, score
from nas.tasks.vocabulary import Vocabulary
from predictors import Workload, device_name
from search_spaces import InputError, SubnetConfig


def finetune(
    folder: Path, recipe: Recipe, run: Path, out: Path, *, lora: int | None = None
) -> tuple[dict[str, Score], dict[str, Any]]:
    """Trains an export with the recipe's ``parent`` settings, measures it and writes it to another folder.

    Its metrics are saved in the run, whose report and tables then show them with the inherited ones.

    Args:
        folder: An export.
        recipe: Its data and training settings.
        run: The run of the export; its parent is the teacher and the reference model of latencies.
        out: Folder to write; a previous export there is replaced.
        lora: Rank of adapters that are trained in place of all weights, and then merged; None: all weights.

    Returns:
        Metrics on the held-out split before, and the new subnet.json with the values after fine-tuning.

    Raises:
        InputError: If the folder is not an export, or ``out`` is another kind of folder.
    """
    if os.path.lexists(out) and not (out / "subnet.json").is_file():
        raise InputError(f"`--out` must be a new folder or an export, but `{out}` is neither; choose another one.")
    check_place(out, "--out")
    info = read_export_info(folder)
    require_replaceable(out, folder)
    for measured_under in by_workload(info).values():
        Workload.from_dict(measured_under["workload"]).check_available()
    context, parent = check_recipe(recipe), Run(run).parent
    model, subnet = load_export(folder, recipe.task.type), SubnetConfig.from_dict(info["subnet"])
    if (vocabulary := Vocabulary.load(Run(run).supernet)) is not None:
        context.vocabulary = vocabulary
    own, dtype = context.of(subnet), model.dtype
    before = score(model.to(training_device()), own.splits.test, recipe.metric_names)
    model.float()
    work = out.with_name(f".{out.name}.partial")
    if processes.is_main():
        identity = {"export": _weights_digest(folder), "teacher": _weights_digest(parent), "recipe": recipe.to_yaml()}
        _prepare_work_folder(work, identity | ({} if lora is None else {"lora": str(lora)}))
    processes.barrier()
    trained = model if lora is None else with_adapters(model, lora)
    trainer = model_trainer(
        trained,
        recipe.parent,
        work / "checkpoints",
        context.training_set(recipe.parent),
        context.splits.task,
        recipe.seed,
        teacher=context.load_model(parent),
        other_sizes=context.of_sizes([subnet.input_size], recipe.parent),
        input_size=subnet.input_size,
    )
    with progress("finetune") as report:
        train(trainer, report, Run(run).logs / out.name, recipe.parent.minutes)
    processes.exit_other_processes()
    model = model if lora is None else merged(trained)
    cast_weights(model, dtype).save_pretrained(work)
    context.save_processor(work, subnet)
    after = score(model, own.splits.test, recipe.metric_names)
    updated = updated_export_info(info, measured_export_info(work, parent, info, after, context), recipe)
    if "parent_width" in info:
        updated["parent_width"] = add_vector_map(work, model, context)
    write_json(work / "subnet.json", updated)
    write_card(work, updated)
    replace_folder(work, out)
    delete(out / "checkpoints")
    _record_in_run(Run(run), recipe, Finetuned(info["key"], str(out), values_of(after), errors_of(after)))
    return before, updated


def _record_in_run(run: Run, recipe: Recipe, export: Finetuned) -> None:
    """Saves the metrics of an export in its run, if they are on the run's held-out split, and updates the report."""
    if recipe.task.test != run.recipe.task.test:
        print_line(
            f"not added to the report of {run.folder}: the run was scored on {run.recipe.task.test}, this model on "
            f"{recipe.task.test}"
        )
        return
    save_finetuned(run, export)
    if run.report.is_file():
        run_report(run)


def measured_export_info(
    folder: Path, parent: Path, info: Mapping[str, Any], scores: Mapping[str, Score], context: TaskContext
) -> dict[str, Any]:
    """The values of a subnet.json that change by fine-tuning: metrics, latencies, size.

    If this is another device than that of ``info``, the parent's latency is measured here too.
    """
    reported = info["parent"] or {"values": {}, "errors": {}}
    values, errors = values_of(scores) | {"size_mb": size_mb("torch", folder)}, errors_of(scores)
    parent_values, parent_errors, devices = dict(reported["values"]), dict(reported["errors"]), dict[str, str]()
    for workload, own in by_workload(info).items():
        name = cost_name("latency_ms", workload)
        devices[workload] = device_name(Workload.from_dict(own["workload"]))
        reported_ms = reported["values"].get(name) if devices[workload] == own["device"] else None
        timed = time_with_parent(parent, {"torch": folder}, own, reported_ms)
        values[name], errors[name] = timed["torch"]
        if reported_ms is None:
            parent_values[name], parent_errors[name] = timed[PARENT]
    named = {name: {**own, "device": devices[name]} for name, own in info.get("workloads", {}).items()}
    return {
        "values": values,
        "errors": errors,
        "measured": True,
        "predicted": False,
        "device": next(iter(devices.values())),
        **({"workloads": named} if named else {}),
        "split": Path(context.recipe.task.test).name,
        "max_length": context.recipe.task.max_length,
        "parent": {"values": parent_values, "errors": parent_errors},
    }


def updated_export_info(info: Mapping[str, Any], new: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A subnet.json with the values of `measured_export_info`; the previous ones are kept as ``inherited``."""
    counts = {name: value for name, value in info["values"].items() if is_cost(name)}
    values = {**counts, **new["values"]}
    judged = recipe.with_parent((new.get("parent") or {}).get("values", {}))
    bounds = {name: bound for name, bound in judged.bounds.items() if name in values}
    feasible = all(bound.violation(values[name]) <= 0 for name, bound in bounds.items())
    rest = {name: value for name, value in info.items() if name != "formats"}
    inherited = {name: info[name] for name in ("values", "errors")}
    return {**rest, **new, "values": values, "feasible": feasible, "inherited": inherited}


def values_of(scores: Mapping[str, Score]) -> dict[str, float]:
    """Metric -> value."""
    return {name: metric.value for name, metric in scores.items()}


def errors_of(scores: Mapping[str, Score]) -> dict[str, float]:
    """Metric -> standard error."""
    return {name: metric.standard_error for name, metric in scores.items()}


def _prepare_work_folder(work: Path, identity: dict[str, str]) -> None:
    """Creates the work folder; keeps checkpoints of a killed fine-tuning of the same model, teacher and recipe."""
    file = work / "checkpoints" / "identity.json"
    if not file.is_file() or read_json(file) != identity:
        shutil.rmtree(work, ignore_errors=True)
        file.parent.mkdir(parents=True)
        write_json(file, identity)


def _weights_digest(folder: Path) -> str:
    """Identifies the weights in a model folder."""
    return "-".join(digest(file) for file in sorted(folder.glob("*.safetensors")))

"""Fine-tuning an export, and what a run keeps when a stage is killed at its end or built again."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from toys import bert, text_inputs
from transformers import BertForSequenceClassification

from nas.commands import finetune as finetune_module
from nas.commands.finetune import finetune, measured_export_info, updated_export_info
from nas.exports.export import enable_remote_code, provenance, save_subnet
from nas.exports.formats import load_export
from nas.fronts.front import ParetoFront
from nas.fronts.output import filter_front
from nas.fronts.point import Point
from nas.recipe.objectives import format_value
from nas.recipe.schema import Recipe
from nas.runs.files import replace_folder, write_json
from nas.runs.finetuned import Finetuned, front_with_finetuned, load_finetuned, save_finetuned
from nas.runs.run import Run
from nas.stages.parent import run_parent
from nas.supernets import load as load_module
from nas.supernets.distillation_trainer import DistillationTrainer
from nas.supernets.importance import order_by_importance
from nas.supernets.layer_importance import layer_order
from nas.supernets.load import load_supernet
from nas.supernets.space import search_space
from nas.supernets.strategies import Sandwich
from nas.supernets.supernet import Supernet
from nas.supernets.supernet_trainer import SupernetTrainer
from nas.supernets.training import training_arguments
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from search_spaces import SubnetConfig

UNEVEN = SubnetConfig((0, 2, 3), (4, 1, 2), (96, 24, 96), 48)
SMALL = SubnetConfig.uniform((1, 3), num_attention_heads=4, intermediate_size=24, hidden_size=48)
RESULTS = (
    "parent",
    "supernet",
    "supernet.partial",
    "measurements.jsonl",
    "predictor",
    "study.log",
    "trials.csv",
    "verified.jsonl",
    "front.json",
    "report.html",
    "exports",
    "finetuned.json",
)
KEPT = ("measurements.jsonl", "predictor")


class Killed(BaseException):
    """Stands for a kill."""


def kill(*_: Any, **__: Any) -> None:
    raise Killed


@pytest.fixture
def run(text_recipe: Path, tmp_path: Path) -> Run:
    return Run.open(tmp_path / "run", Recipe.load(text_recipe))


def export(run: Run, subnet: SubnetConfig, out: Path) -> Path:
    """A subnetwork of the parent as `nas export` writes it, with arbitrary values."""
    context = TaskContext(run.recipe)
    save_subnet(Supernet(context.load_model(run.parent)), subnet, context, out)
    values = {"accuracy": 7.0, "latency_ms": 9.0, "macs": 5.0}
    point = Point(subnet, values, {"accuracy": 0.7}, measured=True)
    write_json(out / "subnet.json", {**provenance(run), **point.to_dict()})
    return out


def test_an_export_names_a_local_parent_but_not_its_folder(run: Run) -> None:
    info = provenance(run)
    assert info["name"] == Path(run.recipe.model).name and info["base_model"] is None
    assert str(Path(run.recipe.model).parent) not in str(info)


@pytest.mark.slow
def test_a_killed_finetuning_resumes_only_with_the_same_export(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_parent(run, TaskContext(run.recipe))
    small, uneven = export(run, SMALL, tmp_path / "small"), export(run, UNEVEN, tmp_path / "uneven")
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    for folder in (small, uneven):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(finetune_module, "replace_folder", kill)
            finetune(folder, run.recipe, run.folder, out)
    with monkeypatch.context() as patch:  # its trained weights are there: nothing is trained again
        patch.setattr(DistillationTrainer, "training_step", kill)
        _, info = finetune(uneven, run.recipe, run.folder, out)
    finetune(uneven, run.recipe, run.folder, fresh)
    assert (out / "model.safetensors").read_bytes() == (fresh / "model.safetensors").read_bytes()
    assert not (out / "checkpoints").exists() and not list(tmp_path.glob(".*.partial"))
    assert json.loads((out / "subnet.json").read_text()) == info
    saved = load_finetuned(run)[UNEVEN.key]
    assert saved.values == {"accuracy": info["values"]["accuracy"]} and Path(saved.folder) == fresh.resolve()


def test_a_front_has_fine_tuned_and_inherited_metrics(run: Run) -> None:
    points = [
        Point(SMALL, {"accuracy": 0.8, "latency_ms": 1.0, "macs": 3.0}, {"accuracy": 0.02}, measured=True),
        Point(UNEVEN, {"accuracy": 0.9, "latency_ms": 2.0, "macs": 5.0}, {"accuracy": 0.02}, measured=True),
    ]
    parent = replace(points[1], source="parent").to_dict()
    front = ParetoFront.of(points, run.recipe.objectives).to_dict()
    write_json(run.front_file, {"front": front, "verified": [parent], "reference": {}, "hypervolume": {}})
    assert front_with_finetuned(run) == run.front()
    for value in (0.84, 0.88):
        save_finetuned(
            run, Finetuned(SMALL.key, "small-finetuned", {"accuracy": value, "loss": 0.3}, {"accuracy": 0.01})
        )
    front = front_with_finetuned(run)
    assert front.value_names == ["accuracy", "accuracy_finetuned", "latency_ms", "macs"]
    assert front.points[0].values["accuracy_finetuned"] == 0.88 and front.points[1] == points[1]
    assert list(front.points[0].values) == ["accuracy", "accuracy_finetuned", "latency_ms", "macs"]
    text = _shown(front)
    assert "accuracy_finetuned" in text and "0.8800 ± 0.0100" in text and "nas finetune" in text
    assert "accuracy_finetuned" not in _shown(run.front())
    save_finetuned(run, Finetuned(UNEVEN.key, "uneven-finetuned", {"accuracy": 0.95}, {"accuracy": 0.01}))
    both = filter_front(front_with_finetuned(run), where="accuracy_finetuned > 0.8", sort="accuracy_finetuned")
    assert [point.key for point in both] == [UNEVEN.key, SMALL.key]


def _shown(front: ParetoFront) -> str:
    console = Console(width=140, file=io.StringIO())
    console.print(front.table())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_only_metrics_on_the_held_out_split_of_the_run_are_saved(run: Run, tmp_path: Path) -> None:
    shutil.copy(run.recipe.task.test, tmp_path / "other.csv")
    export = Finetuned(SMALL.key, "small-finetuned", {"accuracy": 0.9}, {})
    task = run.recipe.task.model_copy(update={"test": str(tmp_path / "other.csv")})
    finetune_module._record_in_run(run, run.recipe.model_copy(update={"task": task}), export)
    assert not load_finetuned(run)
    finetune_module._record_in_run(run, run.recipe, export)
    assert load_finetuned(run)[SMALL.key].values == {"accuracy": 0.9}


@pytest.mark.slow
def test_a_finetuned_export_has_its_own_measurements(run: Run, tmp_path: Path) -> None:
    """Its metrics, its latency relative to the parent's, and its size; the inherited values are kept."""
    context = TaskContext(run.recipe)
    run_parent(run, context)
    small, out = export(run, SMALL, tmp_path / "small"), tmp_path / "out"
    before, info = finetune(small, run.recipe, run.folder, out)
    values, parent = info["values"], info["parent"]["values"]
    assert values["macs"] == 5.0 and info["key"] == SMALL.key and info["inherited"]["values"]["latency_ms"] == 9.0
    tuned = BertForSequenceClassification.from_pretrained(out)
    assert values["accuracy"] == score(tuned, context.splits.test, ["accuracy"])["accuracy"].value != 7.0
    assert values["size_mb"] == (out / "model.safetensors").stat().st_size / 1e6
    assert before["accuracy"].value != 7.0 and info["errors"]["latency_ms"] >= 0
    text = (out / "README.md").read_text()
    rows = {name: format_value(name, value, info["errors"].get(name)) for name, value in values.items()}
    assert all(f"| {name} | {row} |" in text for name, row in rows.items())
    assert values["latency_ms"] > 0 and parent["latency_ms"] > 0
    scale = {**info, "parent": {"values": {"latency_ms": 1000.0}, "errors": {}}}
    on_this_device, on_other_device = (
        measured_export_info(out, run.parent, {**scale, "device": device}, {}, context)
        for device in (info["device"], "another processor")
    )
    assert on_this_device["values"]["latency_ms"] > 10 * values["latency_ms"], "not on the scale of the stated parent"
    assert on_this_device["parent"] == scale["parent"]
    assert on_other_device["device"] == info["device"] and on_other_device["parent"]["values"]["latency_ms"] < 1000


def test_a_finetuned_export_keeps_exact_costs_and_is_checked_against_constraints_again(text_recipe: Path) -> None:
    recipe = Recipe.load(text_recipe, ["constraints.accuracy='>= 0.8'"])
    values, errors = {"accuracy": 0.7, "f1": 0.6, "latency_ms": 3.0, "macs": 5.0}, {"accuracy": 0.1}
    info = {"key": "k", "feasible": False, "measured": False, "values": values, "errors": errors, "formats": {}}
    new = {"values": {"accuracy": 0.9, "latency_ms": 2.0}, "errors": {"accuracy": 0.05}, "measured": True}
    updated = updated_export_info(info, new, recipe)
    assert updated["values"] == {"accuracy": 0.9, "latency_ms": 2.0, "macs": 5.0} and updated["feasible"]
    assert updated["errors"] == new["errors"] and updated["inherited"] == {"values": values, "errors": errors}
    assert updated["measured"] and "formats" not in updated
    worse = {**new, "values": {**new["values"], "accuracy": 0.75}}
    assert not updated_export_info(info, worse, recipe)["feasible"]


def test_a_stage_killed_before_its_result_is_in_place_is_not_trained_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = os.replace
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", lambda work, target: kill() if Path(target) == run.parent else move(work, target))
        run_parent(run, TaskContext(run.recipe))
    assert not run.parent.exists()
    weights = (run.folder / "parent.partial" / "model.safetensors").read_bytes()
    monkeypatch.setattr(DistillationTrainer, "training_step", kill)
    run_parent(run, TaskContext(run.recipe))
    assert (run.parent / "model.safetensors").read_bytes() == weights
    assert not (run.parent / "checkpoints").exists()


def test_checkpoints_of_a_killed_stage_are_deleted_when_the_run_is_locked_again(run: Run) -> None:
    (run.supernet / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    with run.locked():
        assert run.supernet.exists() and not (run.supernet / "checkpoints").exists()


@pytest.mark.parametrize(("stage", "previous"), [("parent", ()), ("supernet", ("parent",))])
def test_a_rebuilt_stage_deletes_results_of_its_old_weights(stage: str, previous: tuple[str, ...], run: Run) -> None:
    for name in RESULTS:
        if name.endswith((".log", ".csv", ".html", ".json", ".jsonl")):
            (run.folder / name).write_text("old")
        elif name != stage:
            (run.folder / name / "below").mkdir(parents=True)
            (run.folder / name / "below" / "subnet.json").touch()
    with run.building(run.folder / stage) as work:
        (work / "new").touch()
    assert {name for name in RESULTS if (run.folder / name).exists()} == {stage, *previous, *KEPT}
    assert (run.folder / stage / "new").exists()


def test_a_predictor_fitted_again_deletes_nothing(run: Run) -> None:
    run.front_file.write_text("old")
    with run.building(run.predictor):
        pass
    assert run.front_file.exists()


def test_a_folder_moves_into_place_although_a_kill_left_its_predecessor(tmp_path: Path) -> None:
    for name in ("new", "x", ".x.old"):
        (tmp_path / name / "below").mkdir(parents=True)
    (tmp_path / "new" / "file").touch()
    replace_folder(tmp_path / "new", tmp_path / "x")
    assert (tmp_path / "x" / "file").exists() and [path.name for path in tmp_path.glob("*x*")] == ["x"]


def test_a_step_on_several_devices_takes_the_mean_of_their_losses(run: Run, tmp_path: Path) -> None:
    supernet, space = Supernet(bert(hidden_dropout_prob=0.0)), search_space(TaskContext(run.recipe))
    arguments = training_arguments(run.recipe.supernet, tmp_path / "checkpoints", 0, by_length=False)
    trainer = SupernetTrainer(
        supernet=supernet,
        task=TaskContext(run.recipe).splits.task,
        strategy=Sandwich(space, space.sample_mixed, 0),
        teacher=bert(num_labels=2),
        args=arguments,
    )

    class Parallel(torch.nn.Module):
        def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
            outputs = supernet.model(**inputs)
            return SimpleNamespace(logits=outputs.logits, loss=torch.stack([outputs.loss, outputs.loss]))

    batch = {**text_inputs(), "labels": torch.tensor([0, 1, 1])}
    losses = []
    for model in (supernet.model, Parallel()):
        torch.manual_seed(0)
        losses.append(trainer.training_step(model, batch))
    assert losses[0].shape == () and torch.allclose(losses[0], losses[1])


def test_layers_are_ordered_on_their_own_batches() -> None:
    supernet = Supernet(bert())
    batches = [[{**text_inputs(), "labels": torch.tensor(labels)}] for labels in ([0, 1, 1], [1, 0, 0])]
    order = order_by_importance(supernet, *batches)
    assert order.layers == layer_order(supernet, batches[1]) != layer_order(supernet, batches[0])


def test_the_supernet_is_scored_on_the_training_device(
    run: Run, text_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = TaskContext(run.recipe)
    context.load_model().save_pretrained(run.supernet)
    write_json(run.supernet / "importance.json", {"layers": [0, 1, 2, 3]})
    monkeypatch.setattr(load_module, "training_device", lambda: "meta")
    assert load_supernet(run, context)[0].model.device.type == "meta"


@pytest.mark.parametrize(
    "modules",
    [
        "nas, transformers.models.bert.modeling_bert",
        pytest.param("transformers.pipelines, nas", marks=pytest.mark.slow),
    ],
)
def test_the_config_of_an_export_loads_without_the_flag_once_nas_is_imported(modules: str, tmp_path: Path) -> None:
    model = Supernet(bert()).extract(UNEVEN)
    enable_remote_code(model, "AutoModelForSequenceClassification")
    model.save_pretrained(tmp_path)
    load = f"from transformers import AutoConfig; print(type(AutoConfig.from_pretrained({str(tmp_path)!r})))"
    command = [sys.executable, "-c", f"import {modules}; {load}"]
    nowhere = subprocess.DEVNULL
    done = subprocess.run(command, capture_output=True, text=True, stdin=nowhere, cwd=Path(__file__).parent)
    assert done.stdout.strip() == "<class 'nas.modeling.modeling_nas.NasBertConfig'>", done.stderr


@pytest.mark.slow
def test_merged_adapters_change_weights_by_their_rank_only(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    run_parent(run, TaskContext(run.recipe))
    uneven = export(run, UNEVEN, tmp_path / "uneven")
    _, info = finetune(uneven, run.recipe, run.folder, tmp_path / "out", lora=2)
    old, new = (load_file(folder / "model.safetensors") for folder in (uneven, tmp_path / "out"))
    assert {name: tensor.shape for name, tensor in old.items()} == {name: tensor.shape for name, tensor in new.items()}
    changes = {name: new[name] - old[name] for name in old if ".layer." in name and old[name].dim() == 2}
    assert {int(torch.linalg.matrix_rank(change, atol=1e-6)) for change in changes.values()} == {2}
    assert torch.equal(old["bert.embeddings.word_embeddings.weight"], new["bert.embeddings.word_embeddings.weight"])
    reloaded = load_export(tmp_path / "out", "text-classification")
    context = TaskContext(run.recipe)
    assert score(reloaded, context.splits.test, ["accuracy"])["accuracy"].value == info["values"]["accuracy"]

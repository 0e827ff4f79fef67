"""Every command on one finished run: what it prints, writes and promises."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from toys import bert

from nas import cli
from nas.commands.dry_run import CALLS, ROUNDS, RUNTIME_S, _seconds, counted_work, estimate
from nas.commands.step_time import StepTime
from nas.exports.model_info import model_info
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.stages.needs import Needs, holder, meta_model, stage_needs
from nas.stages.parent_check import _memory_line
from nas.tasks.context import TaskContext
from search_spaces import InputError


def nas(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["nas", *map(str, words)])
    cli.main()


@pytest.mark.slow
def test_the_commands_of_a_finished_run(
    finished: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, run = finished[0], Run(finished[1])
    front = run.front()
    nas(monkeypatch, "show", run.folder)
    printed_front = capsys.readouterr().out
    assert (
        all(point.key in printed_front for point in front)
        and "hypervolume" in printed_front
        and "random" in printed_front
    )

    fastest = front.pick("fastest")
    nas(monkeypatch, "show", run.folder, "--where", f"latency_ms <= {fastest.values['latency_ms']}")
    assert fastest.key in capsys.readouterr().out

    small = tmp_path / "small"
    nas(monkeypatch, "export", run.folder, "--pick", "fastest", "--out", small)
    info = json.loads((small / "subnet.json").read_text())
    assert info["key"] == fastest.key and info["workload"]["threads"] == 1 and info["measured"]
    assert (small / "tokenizer.json").exists() and "reloads with equal outputs" in capsys.readouterr().out

    with pytest.raises(SystemExit) as stop:
        nas(monkeypatch, "bench", small, run.parent, "--workload", recipe, "--precision", 1e-9, "--minutes", 0.05)
    printed = capsys.readouterr()
    assert stop.value.code == 2 and "ratio" in printed.out and "memory_mb" in printed.out
    assert printed.err.count("\n") == 1 and "`--precision 1e-09` must be reached" in printed.err

    nas(monkeypatch, "finetune", small, recipe, "--run", run.folder)
    assert "accuracy" in capsys.readouterr().out
    tuned = json.loads((tmp_path / "small-finetuned" / "subnet.json").read_text())
    assert tuned["key"] == fastest.key and "accuracy" in tuned["inherited"]["values"]
    nas(monkeypatch, "show", run.folder, "--where", "accuracy_finetuned >= 0")
    assert fastest.key in (out := capsys.readouterr().out) and "fine-tuned   " in out
    assert "accuracy_finetuned" in run.report.read_text()
    assert (small / "model.safetensors").read_bytes() != (tmp_path / "small-finetuned/model.safetensors").read_bytes()

    nas(monkeypatch, "convert", small, "--to", "program")
    monkeypatch.setattr("nas.exports.check.LATENCY_TOLERANCE", 100.0)  # this machine may be busy
    nas(monkeypatch, "verify", small, "--run", run.folder, "--trust-remote-code")
    checked = json.loads((small / "subnet.json").read_text())["formats"]
    assert set(checked) == {"torch", "program"} and "program" in capsys.readouterr().out
    assert set(checked["program"]["values"]) == {"accuracy", "latency_ms", "size_mb", "memory_mb"}
    info["values"]["accuracy"] = 0.123
    (small / "subnet.json").write_text(json.dumps(info))
    with pytest.raises(SystemExit, match="2"):
        nas(monkeypatch, "verify", small, "--run", run.folder, "--trust-remote-code")
    assert "torch states accuracy 0.1230" in capsys.readouterr().err

    nas(monkeypatch, "profile", recipe, "--run", run.folder)
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("depth-only", str(run.recipe.workload), "each extracted", "interval"))


def test_a_dry_run_loads_no_weights_and_writes_nothing(
    text_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load_model(*_: object) -> None:
        raise AssertionError("a dry run loads no weights")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TaskContext, "load_model", load_model)
    before = sorted(tmp_path.rglob("*"))
    nas(monkeypatch, "search", text_recipe, "search.evaluations=7", "--dry-run")
    printed = capsys.readouterr().out
    assert "evaluations: 7" in printed and "# space: 2,400 subnetworks" in printed and "# estimated minutes" in printed
    assert "# estimated GB of memory" in printed
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_keeps_the_budgets_and_counts_all_examples(text_recipe: Path) -> None:
    overrides = ["profile.samples=1000", "profile.minutes=0.02", "verify.minutes=0.03"]
    recipe = Recipe.load(text_recipe, overrides)
    sampled, whole = TaskContext(recipe, sample=5), TaskContext(recipe)
    assert sampled.num_examples == whole.num_examples and len(sampled.splits.train) == 5
    minutes = estimate(recipe)["minutes"]
    assert minutes["profile"] <= 0.02 and set(minutes) >= {"parent", "supernet", "search", "verify", "export"}


def test_an_estimate_counts_the_parent_in_other_runtimes_and_layers_that_are_trained(
    text_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = StepTime(1.0, 1.0, 1.0, 1.0)
    monkeypatch.setattr("predictors.measurement.runtime.find_spec", lambda _: "installed")

    def counted(*baselines: str) -> tuple[dict[str, float], str]:
        overrides = [f"baselines=[{', '.join(baselines)}]", "supernet.order=none"]
        context = TaskContext(Recipe.load(text_recipe, overrides), sample=5)
        return _seconds(context, time), counted_work(context)["verify"]

    (alone, work), (beside, named) = counted(), counted("runtimes", "layer-drop")
    assert beside["verify"] - alone["verify"] == pytest.approx(2 * (RUNTIME_S + ROUNDS * CALLS))
    assert beside["finish"] == pytest.approx(2 * alone["finish"] + alone["supernet"]), "of one model"
    assert named == f"{work}; the parent also in onnxruntime, openvino"


def test_an_estimate_counts_the_passes_that_order_and_calibrate(text_recipe: Path) -> None:
    def supernet_s(*overrides: str) -> float:
        context = TaskContext(Recipe.load(text_recipe, ["supernet.strategy=none", *overrides]), sample=5)
        return _seconds(context, StepTime(train_s=100.0, optimizer_s=0.0, score_s=1.0, workload_s=0.0))["supernet"]

    train = TaskContext(Recipe.load(text_recipe)).num_examples["train"]
    assert supernet_s("supernet.order=none") == train, "calibration"
    whole = "space={num_attention_heads: [1, 4]}"
    assert supernet_s("supernet.order=activation", whole) == 3 * train, "heads and neurons, channels"
    assert supernet_s("supernet.order=gradient", whole) == 102 * train
    assert supernet_s("supernet.order=activation") == 12 * train, "without each of four layers, twice"


def test_what_stages_need_is_counted_and_what_does_not_fit_is_named(
    text_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def needs(*overrides: str) -> dict[str, Needs]:
        context = TaskContext(Recipe.load(text_recipe, overrides), sample=5)
        return stage_needs(context, meta_model(context))

    trained, small = needs(), needs("supernet.strategy=none", "finish.models=0", "supernet.batch_size=16")
    parameters = sum(parameter.numel() for parameter in bert().parameters()) / 1e9
    assert trained["supernet"].memory_gb > 20 * parameters > small["supernet"].memory_gb > 4 * parameters
    assert trained["finish"].disk_gb > 36 * parameters and not small["finish"].disk_gb
    context, untrained = TaskContext(Recipe.load(text_recipe)), ["supernet.strategy=none", "finish.models=0"]
    monkeypatch.setattr("nas.stages.parent_check.available_gb", lambda _: 20 * parameters)
    named = _memory_line(context, meta_model(context)).partition(" GB of the cpu; ")[2].partition(" will not fit")[0]
    assert {"supernet", "finish"} <= {*named.split(", ")} and "export" not in named
    memory_gb = {"cpu": 20 * parameters, "cuda": 3.9 * parameters}
    monkeypatch.setattr("nas.stages.needs.available_gb", memory_gb.__getitem__)
    monkeypatch.setattr("nas.stages.needs.training_device", lambda: "cuda")
    with pytest.raises(InputError, match=r"that is trained must fit on one device.*float32 and the cuda has"):
        _memory_line(context, meta_model(context))
    monkeypatch.setattr(TaskContext, "should_finetune", False)
    assert holder(TaskContext(Recipe.load(text_recipe, untrained)), meta_model(context)) == "cpu"
    on_gpu = TaskContext(Recipe.load(text_recipe, [*untrained, "workload.device=cuda"]))
    with pytest.raises(InputError, match="whose latency is measured must fit on that device"):
        holder(on_gpu, meta_model(context))
    memory_gb["cpu"] = 3.9 * parameters
    with pytest.raises(InputError, match=r"weights of a model must fit into the machine's memory.*and the cpu has"):
        _memory_line(context, meta_model(context))


def test_the_whole_front_is_exported_at_once(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, written = Run(finished[1]), {}
    monkeypatch.setattr(
        "nas.exports.export.export_subnet",
        lambda _, point, folder, formats, **__: written.setdefault(folder, point.key),
    )
    nas(monkeypatch, "export", run.folder, "--all", "--out", tmp_path)
    assert written == {tmp_path / point.key: point.key for point in run.front()}
    with pytest.raises(SystemExit):
        nas(monkeypatch, "export", run.folder, "--all", "--pick", "best", "--out", tmp_path)
    assert "leave one of them out" in capsys.readouterr().err


@pytest.mark.slow
def test_a_parent_and_any_other_model_are_converted_and_verified(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(finished[1])
    nas(monkeypatch, "convert", run.parent, "--to", "program")
    monkeypatch.setattr("nas.exports.check.LATENCY_TOLERANCE", 100.0)  # this machine may be busy
    nas(monkeypatch, "verify", run.parent, "--run", run.folder, "--trust-remote-code")
    printed = capsys.readouterr().out
    parent = next(point for point in run.verified_points() if point.source == "parent")
    accuracy = f"{parent.values['accuracy']:.4f}"
    assert printed.count(accuracy) >= 2, "the parent, as it is and as a program, has the accuracy of the run"
    stock = Path(shutil.copytree(run.parent, tmp_path / "stock"))
    assert model_info(stock)["task"] == "text-classification"
    assert model_info(run.parent)["workload"] == run.recipe.workload.to_dict()
    config = json.loads((stock / "config.json").read_text())
    (stock / "config.json").write_text(json.dumps({**config, "architectures": ["Unheard"]}))
    with pytest.raises(InputError, match="a model with the head of a task"):
        model_info(stock)

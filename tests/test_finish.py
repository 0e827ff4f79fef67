"""The finish stage: which subnetworks are trained on, and that their weights are those of exports and scores."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import TOYS, logits, text_inputs

from nas.exports.export import FinishedModel, supernet_outputs, weights_of
from nas.fronts.front import ParetoFront, reference_point
from nas.fronts.point import Point
from nas.pipeline import STAGES, search
from nas.recipe.schema import Recipe
from nas.reports.summary import int8_line, print_summary
from nas.runs.files import write_json
from nas.runs.finished import read_finished
from nas.runs.run import Run
from nas.stages.finish import TOGETHER, choose_points, run_finish
from nas.stages.parent_runtimes import other_runtimes, parent_in_fastest_runtimes
from nas.stages.report import run_report
from nas.stages.verify import run_verify
from nas.studies.study import evaluated_points, open_studies
from nas.supernets.hidden_states import hidden_state_loss
from nas.supernets.int8_twin import int8_twin, with_int8
from nas.supernets.load import load_ordered_parent, load_supernet
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from predictors.measurement.budget import Budget
from predictors.measurement.timing import REFERENCE, Timing
from search_spaces import InputError, SubnetConfig
from search_spaces.layer_drop import evenly_spaced

LATENCIES = (1.0, 1.9, 2.5, 3.2, 4.9, 7.0, 9.0)
PARENT = SubnetConfig((0,), (4,), (96,), 48)


def front() -> list[Point]:
    """A front whose accuracy grows with latency; the parent takes 10 ms."""
    subnets = [SubnetConfig((0,), (4,), (8 * n,), 48) for n in range(1, 1 + len(LATENCIES))]
    return [Point(s, {"latency_ms": ms, "accuracy": 0.5 + ms / 20}) for s, ms in zip(subnets, LATENCIES, strict=True)]


def parent(**costs: float) -> Point:
    """The parent of `front`."""
    return Point(PARENT, costs)


def recipe(models: int, **constraints: str) -> Recipe:
    """A recipe that trains so many subnetworks on."""
    data = {"model": "m", "task": {"type": "text-classification", "train": "a", "test": "b"}, "space": {}}
    return Recipe.parse({**data, "finish": {"models": models}, "constraints": constraints})


@pytest.mark.parametrize(
    ("models", "constraints", "latencies"),
    [
        (3, {}, [4.9, 3.2, 1.9]),  # at most a half, a third and a fifth of 10 ms
        (1, {}, [4.9]),
        (0, {}, []),
        (3, {"latency_ms": "<= 3"}, [2.5, 1.9, 1.0]),  # the bound, then the best within it that are left
        (9, {}, [4.9, 3.2, 1.9, 1.0, 2.5, 9.0, 7.0]),
    ],
)
def test_points_near_the_bound_and_at_fractions_of_the_parent_are_chosen(
    models: int, constraints: dict[str, str], latencies: list[float]
) -> None:
    chosen = choose_points(front(), recipe(models, **constraints), parent(latency_ms=10.0))
    assert [point.values["latency_ms"] for point in chosen][:3] == latencies[:3] and len(chosen) == len(latencies)


def test_a_bound_far_below_the_parent_is_divided_as_the_parent_is() -> None:
    chosen = choose_points(front(), recipe(3, latency_ms="<= 8"), parent(latency_ms=100.0))
    assert [point.values["latency_ms"] for point in chosen] == [7.0, 3.2, 2.5], "8 ms, a half, a third"


def test_where_nothing_is_much_cheaper_the_cheapest_is_chosen_and_never_the_parent() -> None:
    points = [*front()[5:], Point(PARENT, {"latency_ms": 10.0, "accuracy": 1.0})]
    chosen = choose_points(points, recipe(3), parent(latency_ms=10.0))
    assert [point.values["latency_ms"] for point in chosen] == [7.0, 9.0]
    assert choose_points(points[-1:], recipe(3), parent(latency_ms=10.0)) == points[-1:], "there is no other"


def test_with_several_workloads_models_are_chosen_along_each_in_turn() -> None:
    one, many = "latency_ms@one", "latency_ms@many"
    of_many = (10.0, 20.0, 45.0, 60.0, 70.0, 33.0, 95.0)
    points = [
        replace(point, values={"accuracy": point.values["accuracy"], one: point.values["latency_ms"], many: ms})
        for point, ms in zip(front(), of_many, strict=True)
    ]
    chosen = choose_points(points, recipe(4), parent(**{one: 10.0, many: 100.0}))
    shown = [(point.values[one], point.values[many]) for point in chosen]
    assert shown == [(4.9, 70.0), (7.0, 33.0), (3.2, 60.0), (1.9, 20.0)], "a half of one, of many, a third of each"


def test_a_finished_subnetwork_is_what_is_scored_exported_and_resumed(finished: tuple[Path, Path]) -> None:
    path, folder = finished
    run = Run(folder)
    context = TaskContext(run.recipe)
    supernet, _ = load_supernet(run, context)
    (key,) = (folder_.name for folder_ in run.finished.iterdir() if folder_.is_dir())
    point = next(point for point in run.verified_points() if point.key == key)
    assert point.finished and not any(other.finished for other in run.verified_points() if other.key != key)
    weights = weights_of(run, supernet, point.subnet, context)
    assert isinstance(weights, FinishedModel)
    inputs, outputs = supernet_outputs(weights, point.subnet, context)
    _, inherited = supernet_outputs(supernet, point.subnet, context)
    assert not torch.allclose(outputs["logits"], inherited["logits"], atol=1e-3), "it must have been trained on"
    assert torch.allclose(logits(weights.model.cpu(), inputs), outputs["logits"].flatten(), atol=1e-6)
    before = {file.name: file.stat().st_mtime_ns for file in run.finished.glob("*/*")}
    search(Recipe.load(path), folder)
    assert {file.name: file.stat().st_mtime_ns for file in run.finished.glob("*/*")} == before


def test_a_killed_finish_keeps_what_is_finished(finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = finished
    run = Run(folder)
    weights = {file: file.read_bytes() for file in run.finished.glob("*/*.safetensors")}
    run.front_file.unlink()
    run.finished_list.unlink()
    monkeypatch.setattr("nas.stages.finish._train_alone", lambda *_: pytest.fail("it is trained twice"))
    run_finish(run, TaskContext(run.recipe))
    assert {file: file.read_bytes() for file in weights} == weights
    assert next(stage for stage in STAGES if stage.name == "finish").is_done(run)


def test_without_models_nothing_is_trained_on(finished: tuple[Path, Path]) -> None:
    _, folder = finished
    run = Run(folder)
    shutil.rmtree(run.finished)
    context = TaskContext(run.recipe.model_copy(update={"finish": run.recipe.finish.model_copy(update={"models": 0})}))
    run_finish(run, context)
    assert list(run.finished.iterdir()) == [run.finished_list] and read_finished(run) == []


def test_one_process_trains(finished: tuple[Path, Path]) -> None:
    from nas.stages.check import check_recipe

    with pytest.raises(InputError, match=r"`finish\.workers` must be left out"):
        check_recipe(Recipe.load(finished[0], ["finish.workers=2"]))


def again(run: Run, **update: Any) -> TaskContext:
    """The context of a run whose finish is done again, with these settings of the recipe."""
    shutil.rmtree(run.finished)
    run.front_file.unlink()
    settings = run.recipe.finish.model_copy(update=update.pop("finish", {}))
    return TaskContext(run.recipe.model_copy(update={**update, "finish": settings}))


def test_several_are_trained_together_first_and_that_is_not_repeated(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(finished[1])
    context, losses = again(run, finish={"models": 2, "hidden_states": 10.0}), []

    def loss(*args: Any) -> torch.Tensor:
        losses.append(hidden_state_loss(*args))
        return losses[-1]

    monkeypatch.setattr("nas.supernets.distillation_trainer.hidden_state_loss", loss)
    chosen = evaluated_points(open_studies(run.study, run.recipe)["search"])[:2]
    monkeypatch.setattr("nas.stages.finish.choose_points", lambda *_: chosen)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nas.stages.finish._train_alone", stop)
        with pytest.raises(KeyboardInterrupt):
            run_finish(run, context)
    together, inherited = load_supernet(run, context, run.finished / TOGETHER)[0], load_supernet(run, context)[0]
    monkeypatch.setattr("nas.stages.finish.SupernetTrainer", lambda **_: pytest.fail("it is trained twice"))
    run_finish(run, context)
    models = read_finished(run)
    assert [model.source for model in models] == ["search", "search"] and not (run.finished / TOGETHER).exists()
    logs = [json.loads((model.folder(run) / "training.json").read_text()) for model in models]
    assert len(losses) > 2 and losses[-1] > 0, "hidden states were not compared"
    assert logs[0][-1] == logs[1][-1] and logs[0][-1]["train_runtime"] > 0, "a baseline would be trained too little"
    for model in models:
        inputs, shared = supernet_outputs(together, model.subnet, context)
        before = supernet_outputs(inherited, model.subnet, context)[1]["logits"].flatten()
        alone = logits(context.load_model(model.folder(run)).eval(), inputs)
        assert not torch.allclose(shared["logits"].flatten(), before, atol=1e-3), "they were not trained together"
        assert not torch.allclose(shared["logits"].flatten(), alone, atol=1e-3), "it was not trained alone"


def test_the_teacher_is_the_parent_in_the_order_of_the_supernet(finished: tuple[Path, Path]) -> None:
    run = Run(finished[1])
    context, inputs = TaskContext(run.recipe), text_inputs()
    teacher, order = load_ordered_parent(run, context)
    parent = context.load_model(run.parent).eval()
    with torch.no_grad():
        ours, theirs = (m(**inputs, output_hidden_states=True) for m in (teacher.model.eval(), parent))
    assert torch.allclose(ours.logits, theirs.logits, atol=1e-5)
    order_of_channels = order.hidden or list(range(ours.hidden_states[-1].shape[-1]))
    assert torch.allclose(ours.hidden_states[-1], theirs.hidden_states[-1][..., order_of_channels], atol=1e-5)


def test_the_layer_drop_and_the_int8_twins_are_verified(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(finished[1])
    monkeypatch.setattr("nas.supernets.int8_twin.QUANTIZED_FROM_HIDDEN", 0)
    whole = next(point for point in run.verified_points() if point.source == "layer-drop")
    assert whole.measured and not whole.finished, "by default it is measured without a training of its own"
    assert whole.subnet in evenly_spaced(load_supernet(run, TaskContext(run.recipe))[1])
    assert whole.key in {point.key for point in run.verified_points() if point.source == "search"}, "evaluated too"
    others = [point for point in run.verified_points() if point.key != whole.key]
    assert {point.source for point in run.front()}.isdisjoint({"layer-drop"}), "it may lie outside the space"
    assert run.results()["reference"] == reference_point(others, run.recipe.objectives)
    context = again(run, baselines=["layer-drop"])
    run_finish(run, context)
    run_verify(run, context)
    points = {point.source: point for point in run.verified_points() if point.source not in ("search", "random")}
    parent, dropped = points["parent"].subnet, points["layer-drop"].subnet
    assert len(dropped.layers) < len(parent.layers) and set(dropped.intermediate_size) == set(parent.intermediate_size)
    assert points["layer-drop"].finished and points["parent-int8"].subnet == with_int8(parent) != parent
    (chosen,) = (model.subnet for model in read_finished(run) if model.source == "search")
    twins = [point.subnet for point in run.verified_points() if point.source == "int8"]
    assert with_int8(chosen) in twins and points["int8"].finished and points["int8"].measured
    assert points["parent-int8"].values["size_mb"] < points["parent"].values["size_mb"]
    done = next(point for point in run.verified_points() if point.subnet == chosen)
    weights = FinishedModel(load_supernet(run, context)[0].extract(chosen))
    before = score(weights.model, context.splits.test, ["accuracy"])["accuracy"]
    assert done.values["accuracy_inherited"] == pytest.approx(before.value)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "t5", "vit"])
def test_an_int8_twin_has_the_weights_of_its_model(model_type: str) -> None:
    supernet = Supernet(TOYS[model_type].model())
    parent = supernet.parent
    subnet = parent.with_values(intermediate_size=tuple(96 - 24 * (k % 2) for k in range(len(parent.layers))))
    model = supernet.extract(subnet)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.5
    twin = int8_twin(model, subnet, supernet)
    other = Supernet(TOYS[model_type].model())
    other.model.load_state_dict({name: 1.5 * value for name, value in supernet.model.state_dict().items()})
    expected = other.extract(with_int8(subnet)).state_dict()
    assert twin.state_dict().keys() == expected.keys()
    for name, tensor in twin.state_dict().items():
        assert torch.allclose(tensor.float(), expected[name].float(), atol=1e-6), name


def test_dropped_layers_are_evenly_spaced_and_end_with_the_last() -> None:
    space = Supernet(TOYS["bert"].model()).layout.search_space({"num_hidden_layers": [1, 4]})
    assert [subnet.layers for subnet in evenly_spaced(space)] == [(0, 2, 3), (1, 3), (3,)]
    both = Supernet(TOYS["t5"].model()).layout.search_space({"num_hidden_layers": [1, 4]})
    assert [subnet.layers for subnet in evenly_spaced(both)][1:] == [(1, 3, 5, 7), (3, 7)]


def test_a_front_that_does_not_beat_the_parent_in_int8_says_so() -> None:
    objectives = {"accuracy": "maximize", "latency_ms": "minimize"}
    shown = ParetoFront.of(front(), objectives)
    int8 = Point(front()[0].subnet, {"latency_ms": 0.9, "accuracy": 0.99}, source="parent-int8")
    assert "beats the parent with int8 layers: accuracy 0.9900, latency_ms 0.9" in int8_line(shown, [int8])
    slow = Point(front()[0].subnet, {"latency_ms": 5.0, "accuracy": 0.7}, source="parent-int8")
    assert int8_line(shown, [slow]) == "" == int8_line(shown, [])


def test_terminal_and_report_say_first_that_the_front_does_not_beat_the_parent_in_int8(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, says = Run(finished[1]), "No model of the front beats the parent with int8 layers: accuracy "
    results = run.results()
    int8 = next(point for point in results["verified"] if point["source"] == "parent")
    int8 = {**int8, "source": "parent-int8", "values": {**int8["values"], "accuracy": 1.0, "latency_ms": 1e-6}}
    write_json(run.front_file, {**results, "verified": [*results["verified"], int8]})
    run_report(run)
    print_summary(run, run.front())
    printed = capsys.readouterr().out
    assert printed.startswith(says)
    rows = [line for line in printed.splitlines() if line.startswith(("parent", "layer-drop", "random"))]
    assert len(rows) > 3 and len({row.index(" accuracy ") for row in rows}) == 1, "in one column"
    assert f'</h1>\n  <p class="lead">{says}' in run.report.read_text(encoding="utf-8")


def test_the_parent_in_the_fastest_other_runtime_is_a_row(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(finished[1])
    context = TaskContext(run.recipe.model_copy(update={"baselines": ["runtimes", "compile"]}))
    monkeypatch.setattr("predictors.measurement.runtime.find_spec", lambda _: "installed")
    parent = next(point for point in run.verified_points() if point.source == "parent")
    latencies = {"parent-onnxruntime": 0.7, "parent-openvino": 0.5, REFERENCE: 1.0}

    def prepare(model: Any, inputs: Any, workload: Any) -> str:
        if workload.runtime == "compile":
            raise RuntimeError("it does not compile.\nTraceback")
        return str(workload.runtime)

    def measure(calls: dict[str, str], reference: str, workload: Any, reference_ms: float, budget: Any) -> Any:
        assert calls == {"parent-onnxruntime": "onnxruntime", "parent-openvino": "openvino"} and reference == "torch"
        names = {**latencies, REFERENCE: 1.0}
        return {n: Timing(ms, *[ms * reference_ms] * 4, rounds=1) for n, ms in names.items()}

    monkeypatch.setattr("nas.stages.parent_runtimes.prepare", prepare)
    monkeypatch.setattr("nas.stages.parent_runtimes.measure", measure)
    (fastest,) = parent_in_fastest_runtimes(run, context, parent)
    assert (
        fastest.source == "parent-openvino"
        and "compile is left out: it does not compile.\n" in capsys.readouterr().out
    )
    assert fastest.values == {**parent.values, "latency_ms": 0.5 * parent.values["latency_ms"]}
    assert fastest.errors["latency_ms"] == pytest.approx(0.1 * fastest.values["latency_ms"]), "of one round"
    assert parent_in_fastest_runtimes(run, context, parent, Budget(0.0)) == [], "the time is over"
    latencies.update({"parent-onnxruntime": 1.1, "parent-openvino": 1.2})
    assert parent_in_fastest_runtimes(run, context, parent) == [], "nothing is gained"
    assert other_runtimes(run.recipe) == [], "the recipe does not ask for it"
    assert other_runtimes(recipe(1)) == ["torch", "onnxruntime", "openvino"], "by default, but for what takes minutes"
    huge = replace(parent, values={**parent.values, "size_mb": 4000.0})
    assert parent_in_fastest_runtimes(run, context, huge) == [] and "4000" in capsys.readouterr().out

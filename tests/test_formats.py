"""Formats of an export have the outputs of its Hugging Face model; its card describes it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clean_process
import pytest
import torch
from test_exports import narrower, per_layer
from toys import TOYS, as_fixed, bert, logits, text_inputs

from nas.exports.card import write_card
from nas.exports.check import FormatCheck, failed_checks, is_within_tolerance
from nas.exports.export import ReloadError, enable_remote_code, outputs_in_subprocess
from nas.exports.formats import convert, formats_in, parse_formats, size_mb
from nas.exports.reload import RUNNERS, scored_outputs
from nas.fronts.point import Point
from nas.modeling.modeling_nas import PREFIX
from nas.runs.isolated import run_in_subprocess
from nas.supernets.calibration import calibrate
from nas.supernets.supernet import Supernet
from predictors import Workload
from predictors.measurement.executorch_int8 import with_integer_layers
from predictors.measurement.runtimes import FORMATS
from search_spaces import TASKS, InputError, SubnetConfig

TASK_OF = {
    "bert": "text-classification",
    "vit": "image-classification",
    "llama": "text-generation",
    "t5": "text2text-generation",
    "segformer": "semantic-segmentation",
    "rt_detr_v2": "object-detection",
}
SUBNETS = {"uniform": narrower, "per-layer": lambda layout: unrounded(per_layer(layout))}
NEEDS = {format_name: format_name for format_name in FORMATS} | {
    "onnx": "onnxscript",
    "int8": "onnxscript",
    "openvino-int8": "nncf",
    "executorch-int8": "executorch",
    "program": "torch",
}
LIMITS = dict.fromkeys(FORMATS, 1e-4) | {name: 0.5 for name in FORMATS if FORMATS[name].rounds} | {"program": 1e-5}
"""How far an output may be; random toys have logits of about 1."""
UNCONVERTED = {(family, "per-layer", name) for family in TASK_OF for name in ("openvino", "openvino-int8")}
"""What OpenVINO's frontend has no operation for, as of sparse attention; the user gets one line."""
EVERYDAY = {("bert", "per-layer"), ("vit", "uniform")}
SLOW = {
    ("t5", "uniform", "onnx"),
    ("t5", "uniform", "int8"),
    ("bert", "per-layer", "openvino"),
    ("bert", "per-layer", "program"),
}


def unrounded(subnet: SubnetConfig) -> SubnetConfig:
    """The same without layers that round their inputs, which runtimes do differently."""
    kinds = [kind if kind.endswith("weight") else "int8-weight" for kind in subnet.bits]
    return subnet.with_values(bits=tuple(kinds))


def exported(folder: Path, family: str = "bert", kind: str = "uniform") -> dict[str, Any]:
    """An export of a random toy as `nas export` writes it; returns its subnet.json."""
    supernet = Supernet(TOYS[family].model(TASK_OF[family]))
    supernet.calibration = calibrate(supernet, [TOYS[family].inputs()])
    subnet = as_fixed(supernet.layout, SUBNETS[kind](supernet.layout))
    model = supernet.extract(subnet)
    if type(model).__name__.startswith(PREFIX):
        enable_remote_code(model, TASKS[TASK_OF[family]].auto_class)
    model.save_pretrained(folder)
    workload = Workload(sequence_length=12 if "input_ids" in TOYS[family].inputs() else None)
    values, errors = {"accuracy": 0.9, "latency_ms": 2.0, "size_mb": 1.0}, {"accuracy": 0.01, "latency_ms": 0.1}
    point = Point(subnet, values, errors, measured=True)
    info = {
        "base_model": "some/parent",
        "name": "parent",
        "license": "mit",
        "task": TASK_OF[family],
        "split": "dev.csv",
    }
    info |= {"workload": workload.to_dict(), "device": "a processor", "parent": {"values": values, "errors": errors}}
    info |= point.to_dict()
    (folder / "subnet.json").write_text(json.dumps(info))
    return info


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


def converted() -> Iterator[Any]:
    """Family, kind and format: one with code of ours and a stock one every day, two stacks slow, the rest full.

    GGUF is for decoders with a tokenizer of theirs, see `test_gguf.py`.
    """
    for family, kind, form in product(TASK_OF, SUBNETS, (name for name in FORMATS if not FORMATS[name].spread)):
        marks = []
        if (family, kind, form) in SLOW:
            marks = [pytest.mark.slow]
        elif (family, kind) not in EVERYDAY or (family, kind, form) in UNCONVERTED:
            marks = [pytest.mark.full]
        yield pytest.param(family, kind, form, marks=marks)


@pytest.mark.parametrize(("family", "kind", "format_name"), converted())
def test_every_format_gives_the_outputs_of_the_model(shelf: Path, family: str, kind: str, format_name: str) -> None:
    pytest.importorskip(NEEDS[format_name])
    folder = shelf / f"{family}-{kind}"
    if not folder.exists():
        exported(folder, family, kind)
    if (family, kind, format_name) in UNCONVERTED:
        with pytest.raises(InputError, match="cannot be traced for OpenVINO"):
            convert(folder, [format_name])
        return
    file = convert(folder, [format_name])[format_name]
    inputs, auto = TOYS[family].inputs(), TASKS[TASK_OF[family]].auto_class
    inputs.pop("decoder_attention_mask", None)
    if family == "bert":
        inputs["token_type_ids"] = torch.randint(2, inputs["input_ids"].shape)
    names = TASKS[TASK_OF[family]].outputs
    expected = scored_outputs(RUNNERS["torch"](str(folder), auto, inputs), names, inputs)
    actual = scored_outputs(RUNNERS[format_name](str(file), auto, inputs), names, inputs)
    assert max(float((actual[n] - expected[n]).abs().max()) for n in expected) <= LIMITS[format_name]


def test_a_program_may_return_more_than_tensors(tmp_path: Path) -> None:
    class Detector(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> dict[str, Any]:
            return {"logits": pixel_values * 2, "spatial_shapes": [8, 8]}

    pixels = {"pixel_values": torch.ones(2, 3)}
    torch.export.save(torch.export.export(Detector(), (), pixels), tmp_path / "model.pt2")
    outputs = RUNNERS["program"](str(tmp_path / "model.pt2"), "", pixels)
    assert list(outputs) == ["logits"] and torch.equal(outputs["logits"], torch.full((2, 3), 2.0))


@pytest.mark.slow
def test_an_executorch_program_runs_in_xnnpack_within_its_bounds_with_the_threads_of_the_workload(
    tmp_path: Path,
) -> None:
    pytest.importorskip("executorch")
    from executorch.extension.pybindings import portable_lib

    model, inputs = bert(num_hidden_layers=1), text_inputs()
    inputs["token_type_ids"] = torch.randint(2, inputs["input_ids"].shape)
    info = exported(tmp_path)
    model.save_pretrained(tmp_path)
    info |= {"max_length": 12, "workload": Workload(batch_size=2, sequence_length=8).to_dict()}
    (tmp_path / "subnet.json").write_text(json.dumps(info))
    file = convert(tmp_path, ["executorch"])["executorch"]
    assert b"XnnpackBackend" in file.read_bytes()
    torch.set_num_threads(2)
    run = FORMATS["executorch"].load(file)
    assert portable_lib._threadpool_get_thread_count() == 2
    for length in (12, 5, 1):
        shorter = {name: tensor[:, :length] for name, tensor in inputs.items()}
        assert torch.allclose(run(shorter)["logits"].flatten(), logits(model, shorter), atol=1e-5)
    with pytest.raises(InputError, match="at most 12 tokens, but `input_ids` has 13"):
        run({name: torch.ones(1, 13, dtype=torch.long) for name in inputs})


@pytest.mark.slow
def test_xnnpack_multiplies_the_integers_of_int8_layers(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    supernet = Supernet(TOYS["bert"].model(TASK_OF["bert"]))
    subnet = supernet.parent.with_values(bits=("int8",) * len(supernet.parent.bits))
    model, inputs, file = supernet.extract(subnet), TOYS["bert"].inputs(), tmp_path / "model.pte"
    FORMATS["executorch"].write(model, inputs, file)
    content = file.read_bytes()
    assert b"XnnpackBackend" in content and b"aten::round" not in content  # which rounds activations one by one
    found = FORMATS["executorch"].load(file)(inputs)["logits"].flatten()
    assert torch.allclose(found, logits(model, inputs), atol=0.1)


@pytest.mark.full
def test_every_linear_layer_of_gpt2_has_integers() -> None:
    pytest.importorskip("torchao")
    model, inputs = TOYS["gpt2"].model("text-generation"), TOYS["gpt2"].inputs()
    changed = with_integer_layers(model, all_layers=True)
    layers = [type(m.weight).__name__ for m in changed.modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == 4 * model.config.num_hidden_layers + 1 and set(layers) == {"IntxUnpackedToInt8Tensor"}
    assert torch.allclose(logits(changed, inputs), logits(model, inputs), atol=0.1)
    assert not torch.equal(logits(changed, inputs), logits(model, inputs))


@pytest.mark.parametrize(
    "process", [clean_process, pytest.param(subprocess, marks=pytest.mark.slow)], ids=["forked", "started"]
)
def test_an_export_runs_in_a_clean_process(process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.exports.export.subprocess", process)
    exported(tmp_path)
    inputs = TOYS["bert"].inputs()
    actual = outputs_in_subprocess("torch", tmp_path, "text-classification", inputs)
    expected = RUNNERS["torch"](str(tmp_path), "AutoModelForSequenceClassification", inputs)
    assert torch.allclose(actual["logits"], expected["logits"], atol=1e-5)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ReloadError):
        outputs_in_subprocess("torch", tmp_path, "text-classification", inputs)


@pytest.mark.slow
def test_memory_is_that_of_the_workload_without_libraries(tmp_path: Path) -> None:
    info = exported(tmp_path)
    result = run_in_subprocess("nas.exports.runtime_model", "memory_mb", str(tmp_path), "torch", "", what="torch")
    assert result < 40  # of a toy; the libraries that run it take hundreds
    info["workload"]["batch_size"] = 4096
    (tmp_path / "subnet.json").write_text(json.dumps(info))
    large = run_in_subprocess("nas.exports.runtime_model", "memory_mb", str(tmp_path), "torch", "", what="torch")
    assert large > result + 20  # 4,096 x 12 tokens of some 100 numbers
    with pytest.raises(InputError, match="`it` failed in a separate process"):
        run_in_subprocess("nas.exports.runtime_model", "memory_mb", str(tmp_path), "onnx", "", what="it")


@pytest.mark.parametrize("kind", SUBNETS)
def test_the_card_describes_the_model_and_how_to_load_it(tmp_path: Path, kind: str) -> None:
    from huggingface_hub import ModelCard

    info = exported(tmp_path, kind=kind)
    result = FormatCheck({"accuracy": 0.8, "latency_ms": 1.0, "memory_mb": 30.0}, {"accuracy": 0.01})
    write_card(tmp_path, {**info, "formats": {"int8": {"values": result.values, "errors": result.errors}}})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit" and card.data.base_model == "some/parent"
    assert card.data.pipeline_tag == "text-classification"
    text = card.text
    assert "| accuracy | 0.9000 ± 0.0100 | 0.9000 ± 0.0100 |" in text and "`dev.csv`" in text
    assert "batch 1 · 12 tokens · 1 thread, a processor" in text and "| int8 | 0.8000 ± 0.0100 | 1.00 | 30.0 |" in text
    assert ("trust_remote_code=True" in text) == (kind == "per-layer")
    code = text.split("```python\n")[1].split("```")[0].replace("this-folder", str(tmp_path))
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert torch.equal(
        logits(scope["model"].eval(), TOYS["bert"].inputs()) * 0, torch.zeros(scope["model"].config.num_labels * 3)
    )


def test_a_stated_value_that_is_not_reached_is_named(tmp_path: Path) -> None:
    info = exported(tmp_path)
    good = FormatCheck({"accuracy": 0.902, "latency_ms": 2.3, "size_mb": 1.0}, difference=1e-6)
    assert failed_checks(info, {"torch": good}) == []
    slow = replace(good, values={**good.values, "latency_ms": 3.0})
    assert failed_checks(info, {"torch": slow}) == ["torch states latency_ms 2.00, but it is 3.00"]
    worse = replace(good, values={**good.values, "accuracy": 0.88})
    assert failed_checks(info, {"torch": worse}) == ["torch states accuracy 0.9000, but it is 0.8800"]
    (line,) = failed_checks(info, {"torch": good, "onnx": replace(good, difference=0.01)})
    assert "onnx must give equal outputs" in line
    (line,) = failed_checks(info, {"torch": FormatCheck(failure="no file")})
    assert line == "torch does not run (no file), `nas export` writes it again"
    assert failed_checks(info, {"torch": replace(good, difference=float("nan"))})
    assert not is_within_tolerance("accuracy", 0.9, float("nan"), 0.01) and is_within_tolerance(
        "memory_mb", 30.0, 60.0, 0.0
    )


def test_the_formats_in_a_folder(tmp_path: Path) -> None:
    exported(tmp_path)
    assert list(formats_in(tmp_path)) == ["torch"]
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"0" * 2_000_000)
    (tmp_path / "onnx" / "model.onnx.data").write_bytes(b"0" * 1_000_000)
    (tmp_path / "onnx" / "model_int8.onnx").write_bytes(b"0" * 500_000)
    assert list(formats_in(tmp_path)) == ["torch", "onnx", "int8"]
    assert size_mb("onnx", tmp_path / "onnx" / "model.onnx") == 3.0
    assert size_mb("int8", tmp_path / "onnx" / "model_int8.onnx") == 0.5
    assert parse_formats(" onnx, int8,onnx") == ["onnx", "int8"] and parse_formats("") == []
    with pytest.raises(InputError, match="did you mean `onnx`"):
        parse_formats("onxx")
    with pytest.raises(InputError, match="nas export"):
        convert(tmp_path / "none", ["onnx"])


def test_an_export_is_pushed_to_the_hub_as_any_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the hub's two calls keeps what it is sent."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import hub

    sent: dict[str, Any] = {}

    class StandIn:
        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return SimpleNamespace(repo_id=repo_id)

        def create_commit(self, *, operations: Any, **_: Any) -> None:
            sent.update({operation.path_in_repo: operation for operation in operations})

    monkeypatch.setattr(hub, "hf_api", StandIn)
    exported(tmp_path, kind="per-layer")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=True)
    model.push_to_hub("me/small")
    assert {"config.json", "model.safetensors", "modeling_nas.py"} <= sent.keys()

"""What is promised of converted files: they compute what the export computes, on any processor, and checks refuse."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import sampled
from test_formats import NEEDS, exported
from toys import TOYS, logits, variant

from nas.exports.check import FormatCheck, failed_checks
from nas.exports.export import ReloadError, check_equal, outputs_in_subprocess
from nas.exports.formats import convert, load_export
from nas.supernets.supernet import Supernet
from predictors import Workload
from predictors.measurement import onnx_export
from predictors.measurement.onnx_export import onnx_session, quantize_onnx, write_int8_onnx, write_onnx
from predictors.measurement.plan import Plan, load
from predictors.measurement.rounding import TOLERANCE, allowed_difference, largest_difference, leaf_outputs
from predictors.measurement.runtimes import FORMATS, executorch
from search_spaces import InputError

SIXTEEN_BITS = 2**15
"""Processors without VNNI add two products of bytes in sixteen bits, and saturate."""


def one_sided(bits: str) -> Any:
    """A model of one layer whose rows of weights have one sign and large values each: the worst case for sums."""
    torch.manual_seed(0)
    supernet = Supernet(variant("bert", num_hidden_layers=1).model("text-classification"))
    with torch.no_grad():
        for name, weight in supernet.model.named_parameters():
            if ".layer." in name and name.endswith(("query.weight", "key.weight", "value.weight", "dense.weight")):
                signs = torch.where(torch.rand(len(weight), 1) < 0.5, -1.0, 1.0)
                weight.copy_(0.1 * (0.95 + 0.1 * torch.rand_like(weight)) * signs)
    parent = supernet.parent
    return supernet.extract(parent.with_values(bits=(bits,) * len(parent.layers)))


def largest_pair(file: Path, batch: dict[str, torch.Tensor]) -> int:
    """The largest sum of two neighbouring products of bytes in the integer products of a file, on a batch."""
    import onnx

    proto = onnx.load(file)
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    products = [node for node in proto.graph.node if node.op_type == "MatMulInteger"]
    assert products
    named = {name for node in products for name in node.input if name and name not in weights}
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in sorted(named))
    changed = file.with_name("with_inputs.onnx")
    onnx.save(proto, changed)
    session = onnx_session(changed, 1)
    feed = {port.name: batch[port.name].numpy() for port in session.get_inputs()}
    values = dict(zip(sorted(named), session.run(sorted(named), feed), strict=True)) | weights
    largest = 0
    for node in products:
        a, b = (values[name].astype(np.int64) for name in node.input[:2])
        a = a.reshape(-1, a.shape[-1])
        pairs = a[:, 0::2, None] * b[None, 0::2] + a[:, 1::2, None] * b[None, 1::2]
        largest = max(largest, int(np.abs(pairs).max()))
    return largest


def test_int8_layers_do_not_overflow_without_vnni(tmp_path: Path) -> None:
    model, batch, file = one_sided("int8"), TOYS["bert"].inputs(), tmp_path / "model.onnx"
    difference = write_onnx(model, batch, file, dynamic=False)
    assert SIXTEEN_BITS / 2 < largest_pair(file, batch) < SIXTEEN_BITS
    assert difference < 1e-2


def test_int8_files_do_not_overflow_without_vnni(tmp_path: Path) -> None:
    model, batch, file = one_sided("float32"), TOYS["bert"].inputs(), tmp_path / "model.onnx"
    write_onnx(model, batch, file, int8=True, dynamic=False)
    assert SIXTEEN_BITS / 2 < largest_pair(file, batch) < SIXTEEN_BITS
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "with_inputs.onnx"}


# -- the checks are checked -------------------------------------------------------------------------------------------


def test_a_difference_sees_a_nan_a_missing_output_and_another_shape() -> None:
    right = {"start": torch.zeros(2, 2), "end": torch.zeros(2, 2)}
    nan = torch.full((2, 2), float("nan"))
    assert largest_difference(right, right) == 0
    for name in right:
        assert not largest_difference({**right, name: nan}, right) <= 1e9
        assert not largest_difference(right, {**right, name: nan}) <= 1e9
        assert not largest_difference({name: right[name]}, right) <= 1e9
        assert not largest_difference({**right, name: torch.zeros(2, 1)}, right) <= 1e9


def test_an_export_with_wrong_outputs_is_refused() -> None:
    right, subnet = {"start": torch.zeros(2, 2), "end": torch.zeros(2, 2)}, Supernet(TOYS["bert"].model()).parent
    check_equal(right, {name: tensor + 1e-6 for name, tensor in right.items()}, subnet)
    for wrong in (torch.full((2, 2), float("nan")), torch.full((2, 2), 1e-4), torch.zeros(2, 1)):
        with pytest.raises(InputError, match="the export failed"):
            check_equal({**right, "end": wrong}, right, subnet)
        with pytest.raises(InputError, match="the export failed"):
            check_equal(right, {**right, "start": wrong}, subnet)
    with pytest.raises(InputError, match="the export failed"):
        check_equal({"start": right["start"]}, right, subnet)


class Program:
    """Stands in for an ExecuTorch program whose outputs are changed."""

    def __init__(self, model: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.model, self.change = model, change

    def __call__(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: self.change(value) for name, value in leaf_outputs(self.model, inputs).items()}

    def save_pretrained(self, folder: Path) -> None:
        (folder / "model.pte").touch()


@pytest.mark.parametrize(
    "change", [lambda x: x * np.nan, lambda x: x + 1, lambda x: x[:, :1]], ids=["nan", "1", "cut"]
)
def test_a_wrong_executorch_program_is_refused(change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_and_file("float32")
    changes = [lambda x: x, change]
    monkeypatch.setattr(executorch, "require", lambda *_, **__: None)
    exporter = SimpleNamespace(export=lambda *_: Program(model, changes.pop(0)))
    monkeypatch.setattr("transformers.exporters.ExecutorchExporter", lambda: exporter)
    FORMATS["executorch"].write(model, batch, tmp_path / "model.pte")
    (tmp_path / "model.pte").unlink()
    with pytest.raises(InputError, match="an ExecuTorch program must give the outputs"):
        FORMATS["executorch"].write(model, batch, tmp_path / "model.pte")
    assert list(tmp_path.iterdir()) == []


class Wrong:
    """A session of ONNX Runtime whose outputs are changed, on some of the inputs that it is asked about."""

    asked = 0

    def __init__(self, session: Any, change: Callable[[np.ndarray], np.ndarray], case: int) -> None:
        self.session, self.change, self.case = session, change, case
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs

    def run(self, names: Any, feed: Any) -> list[np.ndarray]:
        outputs = self.session.run(names, feed)
        Wrong.asked += 1
        return [self.change(value) for value in outputs] if Wrong.asked == self.case else outputs


@pytest.mark.parametrize("case", [1, 2], ids=["first case", "second case"])
@pytest.mark.parametrize(
    "change", [lambda x: x * np.nan, lambda x: x + 1, lambda x: x[:, :1]], ids=["nan", "1", "cut"]
)
@pytest.mark.parametrize("bits", ["float32", "int8"])
def test_a_wrong_onnx_file_is_refused(
    bits: str, change: Any, case: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wrong, "asked", 0)
    monkeypatch.setattr(onnx_export, "onnx_session", lambda *a, **k: Wrong(onnx_session(*a, **k), change, case))
    monkeypatch.setattr(onnx_export, "_trace", lambda *_: None)
    monkeypatch.setattr(onnx_export, "_save", lambda _, file: file.write_bytes(written[bits].read_bytes()))
    model, batch = model_and_file(bits)
    with pytest.raises(InputError, match="must give the outputs"):
        write_onnx(model, batch, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


written: dict[str, Path] = {}


def model_and_file(bits: str) -> tuple[Any, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    supernet = Supernet(variant("bert", num_hidden_layers=2).model("text-classification"))
    parent = supernet.parent
    return supernet.extract(parent.with_values(bits=(bits,) * len(parent.layers))), TOYS["bert"].inputs()


@pytest.fixture(scope="module", autouse=True)
def _files(tmp_path_factory: pytest.TempPathFactory) -> None:
    for bits in ("float32", "int8"):
        written[bits] = tmp_path_factory.mktemp("files") / f"{bits}.onnx"
        write_onnx(*model_and_file(bits), written[bits])


def test_an_int8_file_is_compared_with_what_rounding_changes(tmp_path: Path) -> None:
    model, batch = model_and_file("float32")
    difference = write_int8_onnx(model, batch, written["float32"], tmp_path / "int8.onnx")
    allowed = allowed_difference(model, [batch], int8=True)
    assert TOLERANCE < difference < allowed < 20 * difference
    other = model_and_file("float32")[0]
    with torch.no_grad():
        other.bert.encoder.layer[1].output.dense.weight.mul_(1.5)
    with pytest.raises(InputError, match="an int8 ONNX file must give"):
        write_int8_onnx(other, batch, written["float32"], tmp_path / "wrong.onnx")
    assert not (tmp_path / "wrong.onnx").exists()


def test_rounding_is_measured_and_the_model_left_as_it_was() -> None:
    for bits, int8 in (("float32", False), ("float32", True), ("int8", False)):
        model, batch = model_and_file(bits)
        before = logits(model, batch)
        assert (allowed_difference(model, [batch], int8=int8) > TOLERANCE) == (int8 or bits == "int8")
        assert torch.equal(logits(model, batch), before)


@pytest.mark.parametrize("difference", [float("nan"), float("inf"), 1e6])
@pytest.mark.parametrize("format_name", ["torch", "onnx", "int8", "program"])
def test_verify_refuses_wrong_outputs_of_every_format(format_name: str, difference: float) -> None:
    info = {"subnet": {"bits": ["int8", "bfloat16"]}, "measured": False}
    found = failed_checks(info, {format_name: FormatCheck(difference=difference, allowed=0.1)})
    assert len(found) == 1 and "must give equal outputs" in found[0]
    assert failed_checks(info, {format_name: FormatCheck(difference=0.05, allowed=0.1)}) == []


# -- damaged files ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with ONNX files, of another toy, which are quick to write."""
    folder = tmp_path_factory.mktemp("whole") / "export"
    exported(folder)
    (folder / "onnx").mkdir()
    shutil.copy(written["float32"], folder / FORMATS["onnx"].file)
    quantize_onnx(written["float32"], folder / FORMATS["int8"].file)
    return folder


def truncate(folder: Path, format_name: str, share: float) -> Path:
    """Cuts the largest file of a format, that of its weights."""
    files = [*folder.glob("*.safetensors")] if format_name == "torch" else [folder / FORMATS[format_name].file]
    files += [file.with_suffix(".bin") for file in files if file.suffix == ".xml"]
    cut = max(files, key=lambda file: file.stat().st_size)
    cut.write_bytes(cut.read_bytes()[: int(share * cut.stat().st_size)])
    return files[0]


QUICK = {"onnx", "int8"}


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
@pytest.mark.parametrize(
    "format_name",
    sampled((name for name in FORMATS if "gguf" not in name), lambda name: name in QUICK),
)
def test_a_truncated_file_is_refused_in_one_line(format_name: str, share: float, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip(NEEDS[format_name])
    if not (whole / FORMATS[format_name].file).exists():
        convert(whole, [format_name])
    folder = Path(shutil.copytree(whole, tmp_path / "export"))
    file = truncate(folder, format_name, share)
    with pytest.raises(InputError, match="must be complete, but it cannot be read") as refused:
        FORMATS[format_name].load(file)
    assert "\n" not in str(refused.value)
    with pytest.raises(ReloadError) as failed:
        outputs_in_subprocess(format_name, file, "text-classification", TOYS["bert"].inputs())
    assert "\n" not in str(failed.value)
    if format_name == "onnx":
        with pytest.raises(InputError, match="must be complete, but it cannot be read"):
            convert(folder, ["int8"])


def test_verify_says_how_to_write_again_what_does_not_run() -> None:
    info = {"subnet": {}, "measured": False, "formats": {"onnx": {"values": {"accuracy": 0.9}, "errors": {}}}}
    checks = {"torch": FormatCheck(), "onnx": FormatCheck(failure="InvalidProtobuf: parsing failed.")}
    expected = "onnx does not run (InvalidProtobuf: parsing failed), `nas convert --to onnx` writes it again"
    assert failed_checks(info, checks) == [expected]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_folder_with_truncated_weights_is_refused_in_one_line(share: float, whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "export"))
    truncate(folder, "torch", share)
    with pytest.raises(InputError, match="must be complete, but it cannot be read"):
        convert(folder, ["onnx"])
    plan = Plan(Workload(), "AutoModelForSequenceClassification", {"m": str(folder)}, {"m": "m.npz"}, "m", 1, 0.1)
    np.savez(tmp_path / "m.npz", input_ids=np.ones((1, 4), np.int64))
    with pytest.raises(InputError, match="cannot be loaded"):
        load(tmp_path, plan, "m")


@pytest.mark.parametrize("change", ["dropped", "invented", "reshaped"])
def test_an_export_with_other_weights_than_its_model_is_refused(change: str, whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "export"))
    stored = load_file(folder / "model.safetensors")
    name = next(name for name in stored if "layer.0" in name and name.endswith("weight"))
    if change == "invented":
        stored["invented.weight"] = torch.zeros(2)
    else:
        removed = stored.pop(name)
        stored |= {name: removed[:-1].contiguous()} if change == "reshaped" else {}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    assert load_export(whole, "text-classification")
    with pytest.raises(InputError, match="must hold the weights"):
        load_export(folder, "text-classification")

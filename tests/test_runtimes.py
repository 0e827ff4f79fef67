"""Runtimes: each gives the outputs of PyTorch, decodes with a cache, and names missing packages; ONNX files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from samples import sampled
from test_promises_of_exports import SPARSE_DECODERS, narrow_heads
from toys import TOYS, bert

from nas.cli import FORMAT_NAMES
from nas.exports.reload import RUNNERS
from nas.supernets.supernet import Supernet
from predictors import Workload, measure
from predictors.measurement import onnx_export
from predictors.measurement.onnx_export import require, write_onnx
from predictors.measurement.plan import Plan
from predictors.measurement.prepare import check_runtime, prepare
from predictors.measurement.runtimes import FORMATS, RUNTIMES
from predictors.measurement.workload import RuntimeName
from search_spaces import FAMILIES, InputError

LENGTH = 6
DECODERS = [
    name
    for name, family in FAMILIES.items()
    if {"text-generation", "text2text-generation", "automatic-speech-recognition"} & {*family.tasks}
]


def tokens(batch_size: int = 1, length: int = LENGTH) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 20, (batch_size, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def first_of(outputs: Any) -> np.ndarray:
    """The logits in the outputs of any runtime."""
    if hasattr(outputs, "logits"):
        return outputs.logits.numpy()
    return np.asarray(outputs[0])


def needs(runtime: str, dtype: str = "") -> None:
    if runtime == "openvino" and dtype == "int8":
        pytest.importorskip("nncf")
    if runtime in ("onnxruntime", "openvino"):
        pytest.importorskip(runtime)
    if runtime == "onnxruntime":
        pytest.importorskip("onnxscript")
    if runtime == "compile" and not shutil.which("c++"):
        pytest.skip("needs a C++ compiler")


def run(model: Any, inputs: dict[str, torch.Tensor], **workload: Any) -> np.ndarray:
    call = prepare(model, inputs, Workload(sequence_length=LENGTH, **workload))
    with torch.inference_mode():
        outputs = [first_of(call()) for _ in range(2)]
    assert np.allclose(outputs[0], outputs[1], atol=1e-6), "every call must do the same"
    return outputs[0]


def test_a_runtime_and_a_format_are_known_wherever_they_are_named() -> None:
    assert get_args(RuntimeName) == tuple(RUNTIMES) and {*RUNNERS} == {"torch", *FORMATS}
    assert FORMAT_NAMES.split(", ") == [*FORMATS] and all(name == written.name for name, written in FORMATS.items())
    assert len({written.file for written in FORMATS.values()}) == len(FORMATS)
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert {part.extra for part in (*RUNTIMES.values(), *FORMATS.values())} <= {"", *extras}
    for runtime in RUNTIMES.values():
        assert all(
            any(line.startswith(package) for line in extras[runtime.extra]) for package in runtime.extra_packages
        )
        Workload(**{"runtime": runtime.name, "dtype": runtime.dtypes[-1]})


@pytest.mark.parametrize("runtime", [pytest.param(n, marks=[pytest.mark.slow] * (n == "compile")) for n in RUNTIMES])
def test_every_runtime_gives_the_outputs_of_pytorch(runtime: str) -> None:
    needs(runtime)
    model = bert()
    with torch.inference_mode():
        expected = model(**tokens()).logits.numpy()
    assert np.abs(run(model, tokens(), runtime=runtime) - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("model_type", "runtime"),
    [
        ("llama", "torch"),
        ("t5", "torch"),
        ("gpt2", "torch"),
        pytest.param("llama", "onnxruntime", marks=pytest.mark.slow),
    ],
)
def test_decoding_with_a_cache_gives_the_logits_of_the_last_token(model_type: str, runtime: str) -> None:
    needs(runtime)
    task = "text2text-generation" if model_type == "t5" else "text-generation"
    model, inputs = TOYS[model_type].model(task), tokens()
    if model_type == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"].clone()
    with torch.inference_mode():
        expected = model(**inputs).logits[:, -1:].numpy()
    logits = run(model, inputs, runtime=runtime, phase="decode")
    assert logits.shape == expected.shape and np.abs(logits - expected).max() < 1e-4


@pytest.mark.parametrize("length", [5, 6, 9, 20])
@pytest.mark.parametrize("model_type", sampled(DECODERS, lambda name: name in ("mistral", "gemma3_text", "llama")))
def test_decoding_continues_a_sequence_of_any_length(model_type: str, length: int) -> None:
    """Windows of five tokens: shorter than, as long as, and longer than the sequence."""
    task = "text-generation" if "text-generation" in FAMILIES[model_type].tasks else FAMILIES[model_type].tasks[0]
    toy = TOYS[model_type]
    model, inputs = toy.model(task, attention=toy.attentions[0]), tokens(2, length)
    if model_type == "whisper":
        inputs = {"input_features": toy.inputs()["input_features"][:2], "decoder_input_ids": inputs["input_ids"]}
    elif "decoder_input_ids" in toy.inputs():
        inputs["decoder_input_ids"] = inputs["input_ids"].clone()
    with torch.inference_mode():
        expected = model(**inputs).logits[:, -1:].numpy()
    logits = run(model, inputs, batch_size=2, phase="decode")
    assert logits.shape == expected.shape and np.abs(logits - expected).max() < 1e-4


@pytest.mark.parametrize("length", [3, 9, 20])
@pytest.mark.parametrize("model_type", sampled(SPARSE_DECODERS, lambda name: name in ("mistral", "llama")))
def test_decoding_continues_past_sparse_patterns_and_skipped_attention(model_type: str, length: int) -> None:
    toy = TOYS[model_type]
    supernet = Supernet(toy.model("text-generation", attention=toy.attentions[0]))
    model, inputs = supernet.extract(narrow_heads(supernet)), tokens(2, length)
    with torch.inference_mode():
        expected = model(**inputs).logits[:, -1:].numpy()
    logits = run(model, inputs, batch_size=2, phase="decode")
    assert logits.shape == expected.shape and np.abs(logits - expected).max() < 1e-4


@pytest.mark.parametrize("model_type", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_an_onnx_file_that_decodes_is_written_with_autograd_on(model_type: str, tmp_path: Path) -> None:
    needs("onnxruntime")
    model, workload = TOYS[model_type].model(), Workload(sequence_length=LENGTH, runtime="onnxruntime", phase="decode")
    runtime = RUNTIMES["onnxruntime"]
    call = runtime.call(*runtime.write(model, tokens(), workload, tmp_path), workload)
    with torch.inference_mode():
        expected = model(**tokens()).logits[:, -1:].numpy()
    assert np.abs(first_of(call()) - expected).max() < 1e-4


def test_only_prefill_returns_a_cache() -> None:
    model = TOYS["llama"].model("text-generation")
    with torch.inference_mode():
        cached, plain = (
            prepare(model, tokens(), Workload(sequence_length=LENGTH, phase=phase))()  # type: ignore[arg-type]
            for phase in ("prefill", "encode")
        )
    assert cached.past_key_values.get_seq_length() == LENGTH and plain.past_key_values is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("runtime", [name for name, runtime in RUNTIMES.items() if "int8" in runtime.dtypes])
def test_int8_outputs_are_near_but_not_equal(runtime: str) -> None:
    needs(runtime, "int8")
    model = bert()
    with torch.inference_mode():
        exact = model(**tokens()).logits.numpy()
    assert 1e-4 < np.abs(exact - run(model, tokens(), runtime=runtime, dtype="int8")).max() < 0.1


def test_what_quantizes_is_needed_only_where_a_graph_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    float32, int8 = Workload(runtime="openvino"), Workload(runtime="openvino", dtype="int8")
    assert RUNTIMES["openvino"].packages == ("openvino",)
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "nncf" else name)
    check_runtime(float32)
    with pytest.raises(InputError, match=r'dtype=int8.*needs nncf.*"paretoformer\[openvino\]"'):
        check_runtime(int8)


FOOTPRINT = """
import json, sys
sys.modules.update(torch=None, transformers=None)
from predictors.measurement.plan import footprint
print(json.dumps(footprint(sys.argv[1], "m")))
"""
"""Importing one of the two raises ImportError."""


@pytest.mark.slow
@pytest.mark.parametrize("runtime", [name for name, runtime in RUNTIMES.items() if not runtime.needs_torch])
def test_memory_is_that_of_the_runtime_alone(runtime: str, tmp_path: Path) -> None:
    needs(runtime)
    workload = Workload(runtime=runtime, sequence_length=LENGTH)
    file, arrays = RUNTIMES[runtime].write(bert(num_hidden_layers=1), tokens(), workload, tmp_path)
    np.savez(tmp_path / "inputs.npz", **arrays)
    Plan(workload, "", {"m": file.name}, {"m": "inputs.npz"}, "m", passes=1, precision=0.05).write(tmp_path)
    done = subprocess.run([sys.executable, "-c", FOOTPRINT, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["memory_mb"] > 0


def test_a_prepared_model_can_be_measured() -> None:
    call = prepare(bert(), tokens(), Workload(sequence_length=LENGTH))
    assert measure({"same": call}, call, Workload(sequence_length=LENGTH), rounds=3)["same"].latency_ms > 0


@pytest.mark.parametrize("int8", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_onnx_file_takes_any_batch_and_length(tmp_path: Path, int8: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = bert(num_hidden_layers=1)
    difference = write_onnx(model, tokens(), tmp_path / "model.onnx", int8=int8)
    assert (1e-4 < difference < 0.1) if int8 else difference < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    other = tokens(5, 4)
    (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in other.items()})
    with torch.inference_mode():
        assert np.abs(logits - model(**other).logits.numpy()).max() < (0.1 if int8 else 1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("int8", marks=pytest.mark.slow)])
def test_onnx_runtime_logs_errors_only(dtype: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    needs("onnxruntime")
    workload = Workload(sequence_length=LENGTH, runtime="onnxruntime", dtype=dtype)  # type: ignore[arg-type]
    runtime = RUNTIMES["onnxruntime"]
    runtime.call(*runtime.write(bert(num_hidden_layers=1), tokens(), workload, tmp_path), workload)()
    assert capfd.readouterr() == ("", "")


def test_an_onnx_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    import predictors.measurement.rounding as module

    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match="differ"):
        write_onnx(bert(num_hidden_layers=1), tokens(), tmp_path / "model.onnx", dynamic=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "law"),
    [
        ({"phase": "decode"}, "models that generate"),
        ({"runtime": "compile", "dtype": "int8"}, "float32, bfloat16 and float16, but got `int8`"),
        ({"runtime": "onnxruntime", "dtype": "bfloat16"}, "float32 and int8"),
        ({"device": "cuda:99"}, "only: cpu"),
    ],
)
def test_unsupported_workloads_are_refused(change: dict[str, Any], law: str) -> None:
    needs(change.get("runtime", ""))
    with pytest.raises(InputError, match=law):
        prepare(bert(), tokens(), Workload(sequence_length=LENGTH, **change))


def test_the_message_on_a_missing_package_has_the_install_command() -> None:
    with pytest.raises(InputError, match=r'no_such_package.*pip install "paretoformer\[onnx\]"'):
        require("no_such_package", extra="onnx", what="a test")


def test_a_workload_that_exceeds_memory_is_an_input_error() -> None:
    class Huge(torch.nn.Module):
        def can_generate(self) -> bool:
            return False

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return torch.empty(2**50)

    call = prepare(Huge(), {"input_ids": torch.ones(1, 2)}, Workload())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must fit in memory"):
        measure({}, call, Workload(), rounds=1)

"""Runtimes: for each, how to turn a model and its inputs into a call that runs the model once."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predictors.measurement.onnx_export import onnx_session, quiet_export, require, write_onnx
from predictors.measurement.workload import Runtime, Workload, device_errors_as_input_errors
from search_spaces.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

Call = Callable[[], object]
"""Runs a model once and returns its outputs."""

Inputs = Mapping[str, Any]
"""Inputs of a model: name -> tensor, or a cache of keys and values."""

RECOMPILE_LIMIT = 4096
"""Number of models of one class that `torch.compile` may keep compiled, in place of its own limit of 8."""


def prepare(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], workload: Workload) -> Call:
    """Returns a call that runs a model once under a workload; the first calls may compile it.

    In phase ``decode`` a cache is filled with all tokens but the last, and every call processes the last token.

    Args:
        model: A Hugging Face model; PyTorch runtimes move it to the workload's device and dtype.
        inputs: A batch of the workload's shape, of complete sequences in every phase.
        workload: Runtime, device, dtype, phase and threads.

    Raises:
        InputError: If the device, a package or a compiler is missing, the runtime does not support the workload, or
            memory runs out.
    """
    workload.check_available()
    check_runtime(workload)
    import torch

    model = model.eval()
    with device_errors_as_input_errors(workload), torch.inference_mode():
        return RUNTIMES[workload.runtime](model, inputs, workload)


def check_runtime(workload: Workload) -> None:
    """Checks that this machine has what a workload's runtime needs.

    Raises:
        InputError: If something is missing; the message says how to install it.
    """
    what = f"`workload.runtime={workload.runtime}`"
    if workload.runtime == "onnxruntime":
        require("onnx", "onnxscript", "onnxruntime", extra="onnx", what=what)
        if workload.dtype not in ("float32", "int8"):
            raise InputError(f"{what} runs float32 and int8, but got `{workload.dtype}`; set `workload.dtype`.")
    if workload.runtime == "openvino":
        require("openvino", extra="openvino", what=what)
        if workload.dtype == "int8" or workload.on_cuda:
            raise InputError(f"{what} runs float32, bfloat16 and float16 on the cpu, but got ({workload}).")
    if workload.runtime == "compile":
        if not (workload.on_cuda or any(map(shutil.which, ("c++", "g++", "clang++", "cl")))):
            raise InputError(f"{what} needs a C++ compiler, but there is none; install one with `apt install g++`.")
        if workload.dtype == "int8":
            raise InputError(f"{what} has no int8; set `workload.runtime` to torch or onnxruntime.")
    if workload.dtype == "int8" and workload.on_cuda:
        raise InputError(f"`workload.dtype=int8` runs on the cpu, but got `{workload.device}`; set one of them.")


def _phase_inputs(model: PreTrainedModel, inputs: Inputs, workload: Workload) -> dict[str, Any]:
    """The inputs of a model in the workload's phase."""
    if workload.phase != "encode" and not model.can_generate():
        raise InputError(
            f"`workload.phase={workload.phase}` is for models that generate, but `{type(model).__name__}` does not; "
            "set `workload.phase=encode`."
        )
    if workload.phase == "encode":
        return {**inputs, "use_cache": False} if model.can_generate() else dict(inputs)
    if workload.phase == "prefill":
        return {**inputs, "use_cache": True}
    return _decode_step(model, inputs)


def _decode_step(model: PreTrainedModel, inputs: Inputs) -> dict[str, Any]:
    """Inputs of the last token, with all tokens before it in a cache."""
    tokens = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    if inputs[tokens].shape[1] < 2:
        raise InputError("`workload.sequence_length` must be at least 2 to decode after a cache, but got 1.")
    before = {**inputs, tokens: inputs[tokens][:, :-1], "use_cache": True}
    step = {**inputs, tokens: inputs[tokens][:, -1:], "use_cache": True}
    if tokens == "input_ids":
        before["attention_mask"] = inputs["attention_mask"][:, :-1]
    filled = model(**before)
    if tokens == "decoder_input_ids":
        from transformers.modeling_outputs import BaseModelOutput

        step.pop("input_ids", None), step.pop("input_features", None)
        step["encoder_outputs"] = BaseModelOutput(filled.encoder_last_hidden_state)
    return {**step, "past_key_values": filled.past_key_values}


def _move(model: PreTrainedModel, inputs: Inputs, workload: Workload) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model and its phase inputs on the device and in the dtype of a workload, except ``int8``."""
    import torch

    dtype = torch.float32 if workload.dtype == "int8" else getattr(torch, workload.dtype)
    model = model.to(workload.device, dtype)
    moved = {n: t.to(workload.device, dtype if t.is_floating_point() else None) for n, t in inputs.items()}
    return model, _phase_inputs(model, moved, workload)


def _runner(model: Callable[..., Any], inputs: dict[str, Any]) -> Call:
    """Runs a PyTorch model; removes the token that a call adds to the cache."""
    cache = inputs.get("past_key_values")
    if cache is None:
        return partial(model, **inputs)

    def step() -> object:
        outputs = model(**inputs)
        cache.crop(-1)
        return outputs

    return step


def _torch(model: PreTrainedModel, inputs: Inputs, workload: Workload) -> Call:
    model, moved = _move(model, inputs, workload)
    return _runner(_int8(model) if workload.dtype == "int8" else model, moved)


def _int8(model: PreTrainedModel) -> Callable[..., Any]:
    """A copy whose linear layers have int8 weights and quantize their inputs dynamically."""
    import warnings

    import torch
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    if not any("quantized" in type(module).__module__ for module in quantized.modules()):
        raise InputError(
            f"`workload.dtype=int8` in torch quantizes linear layers, but `{type(model).__name__}` has none; set "
            "`workload.runtime=onnxruntime`."
        )
    return quantized


def _compile(model: PreTrainedModel, inputs: Inputs, workload: Workload) -> Call:
    import torch

    model, moved = _move(model, inputs, workload)
    limits: dict[str, Any] = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), RECOMPILE_LIMIT)
    call = _runner(torch.compile(model, dynamic=False), moved)
    with torch._dynamo.config.patch({**limits, "fail_on_recompile_limit_hit": True}):
        for _ in range(2):
            call()
    return call


def _onnxruntime(model: PreTrainedModel, inputs: Inputs, workload: Workload) -> Call:
    with tempfile.TemporaryDirectory(prefix="nas-onnx-") as folder:
        return onnx_call(*write_onnx_workload(model, inputs, workload, Path(folder)), workload)


def write_onnx_workload(
    model: PreTrainedModel, inputs: Inputs, workload: Workload, folder: Path
) -> tuple[Path, dict[str, np.ndarray]]:
    """Writes the ONNX file of a model for the phase and shape of a workload; returns the file and its inputs."""
    import torch
    from transformers.exporters.utils import onnx_feed

    file = folder / "model.onnx"
    with torch.inference_mode():  # a cache with an autograd graph cannot be traced
        model, moved = _move(model, inputs, replace(workload, device="cpu"))
        write_onnx(model, moved, file, int8=workload.dtype == "int8", dynamic=False)
        return file, onnx_feed(input_names(file), moved)


def input_names(file: Path) -> list[str]:
    """Names of the inputs of an ONNX file."""
    return [spec.name for spec in onnx_session(file).get_inputs()]


def onnx_call(file: Path, feed: Mapping[str, np.ndarray], workload: Workload) -> Call:
    """A call that runs an ONNX file with a workload's threads and device; only needs ONNX Runtime and NumPy.

    Inputs are bound once; each call allocates its outputs.
    """
    import onnxruntime

    session = onnx_session(file, workload.threads, _providers(workload))
    device, index = ("cuda", workload.device_index) if workload.on_cuda else ("cpu", 0)
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, index))
    for spec in session.get_outputs():
        binding.bind_output(spec.name, device, index)

    def run() -> list[np.ndarray]:
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

    return run


def _providers(workload: Workload) -> list[Any]:
    """Execution providers of ONNX Runtime for a workload's device."""
    if not workload.on_cuda:
        return ["CPUExecutionProvider"]
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise InputError(
            f"`workload.runtime=onnxruntime` on `{workload.device}` needs ONNX Runtime for GPUs, but this one is for "
            "the cpu; run `pip uninstall onnxruntime && pip install onnxruntime-gpu`."
        )
    return [("CUDAExecutionProvider", {"device_id": workload.device_index})]


def _openvino(model: PreTrainedModel, inputs: Inputs, workload: Workload) -> Call:
    """An inference request of a graph with fixed shapes."""
    import openvino
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter
    from transformers.exporters.utils import openvino_feed

    model, moved = _move(model, inputs, replace(workload, dtype="float32"))
    with quiet_export(model, "OpenVINO"):
        graph = OpenVINOExporter().export(model, moved, OpenVINOConfig(stateful=False)).program
    precision = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[workload.dtype]
    hints = {"INFERENCE_NUM_THREADS": workload.threads, "INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(graph, "CPU", hints).create_infer_request()
    feed = openvino_feed(graph, moved)
    return partial(request.infer, feed, share_inputs=True)


RUNTIMES: dict[Runtime, Callable[[PreTrainedModel, Inputs, Workload], Call]] = {
    "torch": _torch,
    "compile": _compile,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
"""Name -> function of a model, inputs of complete sequences and a workload that returns a call."""

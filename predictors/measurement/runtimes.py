"""Runtimes: what executes a model; each makes of a model and its inputs a call that runs it once."""

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
from predictors.measurement.workload import Runtime, Workload, one_line_errors
from search_spaces.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

Call = Callable[[], object]
"""Runs a model once and returns what it gives."""

Inputs = Mapping[str, Any]
"""What a model is called with: name -> tensor, or a cache of keys and values."""

RECOMPILE_LIMIT = 4096
"""Models of one class that `torch.compile` may keep at once; beyond its own limit of 8 it would not compile."""


def prepared(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], workload: Workload) -> Call:
    """A call that runs a model once, as a workload says; the first calls may compile.

    In phase ``decode`` a cache is filled with all tokens of the inputs but the last, which every call then reads anew.

    Args:
        model: A Hugging Face model; PyTorch runtimes move it to the workload's device and precision.
        inputs: A batch of the workload's shape, of whole sequences in every phase.
        workload: Runtime, device, precision, phase and threads.

    Raises:
        InputError: If the device, a package or a compiler is missing, the runtime cannot do it, or memory is short.
    """
    workload.check_available()
    check_runtime(workload)
    import torch

    model = model.eval()
    with one_line_errors(workload), torch.inference_mode():
        return RUNTIMES[workload.runtime](model, inputs, workload)


def check_runtime(workload: Workload) -> None:
    """Makes sure that what a workload's runtime needs is on this machine.

    Raises:
        InputError: If it is not; says how to install it.
    """
    what = f"`workload.runtime={workload.runtime}`"
    if workload.runtime == "onnxruntime":
        require("onnx", "onnxscript", "onnxruntime", extra="onnx", what=what)
        if workload.dtype not in ("float32", "int8"):
            raise InputError(f"{what} runs float32 and int8, but got `{workload.dtype}`; set `workload.dtype`.")
    if workload.runtime == "openvino":
        require("openvino", extra="openvino", what=what)
        if workload.dtype == "int8" or workload.on_cuda:
            raise InputError(f"{what} runs float32, bfloat16 and float16 on the cpu here, but got ({workload}).")
    if workload.runtime == "compile":
        if not (workload.on_cuda or any(map(shutil.which, ("c++", "g++", "clang++", "cl")))):
            raise InputError(f"{what} needs a C++ compiler, but there is none; `apt install g++` brings it.")
        if workload.dtype == "int8":
            raise InputError(f"{what} has no int8; set `workload.runtime` to torch or onnxruntime.")
    if workload.dtype == "int8" and workload.on_cuda:
        raise InputError(f"`workload.dtype=int8` runs on the cpu, but got `{workload.device}`; set one of them.")


def _phased(model: PreTrainedModel, inputs: Inputs, workload: Workload) -> dict[str, Any]:
    """What a model is called with in a phase."""
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
    """The last token, after all before it have been read into a cache."""
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


def _placed(model: PreTrainedModel, inputs: Inputs, workload: Workload) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model and the inputs of its phase on the device, in the precision of a workload; int8 comes later."""
    import torch

    dtype = torch.float32 if workload.dtype == "int8" else getattr(torch, workload.dtype)
    model = model.to(workload.device, dtype)
    moved = {n: t.to(workload.device, dtype if t.is_floating_point() else None) for n, t in inputs.items()}
    return model, _phased(model, moved, workload)


def _runner(model: Callable[..., Any], inputs: dict[str, Any]) -> Call:
    """Runs a PyTorch model; a cache that it grows by a token is cut back before the next call."""
    cache = inputs.get("past_key_values")
    if cache is None:
        return partial(model, **inputs)

    def step() -> object:
        outputs = model(**inputs)
        cache.crop(-1)
        return outputs

    return step


def _torch(model: PreTrainedModel, inputs: Inputs, workload: Workload) -> Call:
    model, placed = _placed(model, inputs, workload)
    return _runner(_int8(model) if workload.dtype == "int8" else model, placed)


def _int8(model: PreTrainedModel) -> Callable[..., Any]:
    """A copy whose linear layers have int8 weights and quantize their inputs as they come."""
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


def _compiled(model: PreTrainedModel, inputs: Inputs, workload: Workload) -> Call:
    import torch

    model, placed = _placed(model, inputs, workload)
    limits: dict[str, Any] = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), RECOMPILE_LIMIT)
    call = _runner(torch.compile(model, dynamic=False), placed)
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
    """Writes the ONNX file of a model for the phase and shapes of a workload; also returns what it is fed with."""
    import torch
    from transformers.exporters.utils import onnx_feed

    file = folder / "model.onnx"
    with torch.inference_mode():  # a cache with a graph cannot be traced
        model, placed = _placed(model, inputs, replace(workload, device="cpu"))
        write_onnx(model, placed, file, int8=workload.dtype == "int8", dynamic=False)
        return file, onnx_feed(input_names(file), placed)


def input_names(file: Path) -> list[str]:
    """What an ONNX file is fed with."""
    return [spec.name for spec in onnx_session(file).get_inputs()]


def onnx_call(file: Path, feed: Mapping[str, np.ndarray], workload: Workload) -> Call:
    """A call that runs an ONNX file with a workload's threads and device; needs only ONNX Runtime and NumPy.

    Inputs are bound once, outputs are made anew by each call.
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
    """What ONNX Runtime executes with."""
    if not workload.on_cuda:
        return ["CPUExecutionProvider"]
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise InputError(
            f"`workload.runtime=onnxruntime` on `{workload.device}` needs ONNX Runtime for GPUs, but this one is for "
            "the cpu; `pip uninstall onnxruntime && pip install onnxruntime-gpu` brings it."
        )
    return [("CUDAExecutionProvider", {"device_id": workload.device_index})]


def _openvino(model: PreTrainedModel, inputs: Inputs, workload: Workload) -> Call:
    """An inference request of the graph for these very shapes."""
    import openvino
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter
    from transformers.exporters.utils import openvino_feed

    model, placed = _placed(model, inputs, replace(workload, dtype="float32"))
    with quiet_export(model, "OpenVINO"):
        graph = OpenVINOExporter().export(model, placed, OpenVINOConfig(stateful=False)).program
    precision = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[workload.dtype]
    hints = {"INFERENCE_NUM_THREADS": workload.threads, "INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(graph, "CPU", hints).create_infer_request()
    feed = openvino_feed(graph, placed)
    return partial(request.infer, feed, share_inputs=True)


RUNTIMES: dict[Runtime, Callable[[PreTrainedModel, Inputs, Workload], Call]] = {
    "torch": _torch,
    "compile": _compiled,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
"""Name -> what makes a call of a model, inputs of whole sequences and a workload."""

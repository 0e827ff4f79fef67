"""RuntimeModel: wraps a format of an export so that it is called, scored and measured like a Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import ModelOutput

from nas.exports.formats import formats_in, load_export, read_export_info, workload_inputs
from nas.tasks.context import TaskContext
from nas.tasks.loading import load_config
from predictors import Workload, measure
from predictors.measurement.memory import peak_memory_mb
from predictors.measurement.onnx_export import onnx_session
from predictors.measurement.plan import import_libraries
from predictors.measurement.rounds import benchmark_mode
from predictors.measurement.runtimes import input_names, onnx_call, prepare
from predictors.measurement.timing import REFERENCE
from search_spaces import TASKS, InputError

ForwardFunction = Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]


class RuntimeModel(torch.nn.Module):
    """A format of an export as a module that takes model inputs and returns the outputs of its task."""

    def __init__(self, run: ForwardFunction, config: Any, outputs: Sequence[str]) -> None:
        super().__init__()
        self.run, self.config, self.outputs = run, config, outputs
        self.device = torch.device("cpu")

    @classmethod
    def load(cls, format_name: str, path: Path, context: TaskContext) -> Any:
        """Loads a format; for ``torch``, returns the Hugging Face model itself."""
        if format_name == "torch":
            auto = getattr(transformers, context.auto_class)
            return auto.from_pretrained(path, trust_remote_code=False).eval()
        return cls(LOADERS[format_name](path), context.config, context.task.outputs)

    def forward(self, **inputs: Any) -> ModelOutput:
        """Returns the outputs of the task by name."""
        outputs = self.run({name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)})
        return ModelOutput({name: outputs[name] for name in self.outputs})


FORMAT_WORKLOADS: dict[str, dict[str, Any]] = {
    "onnx": {"runtime": "onnxruntime"},
    "int8": {"runtime": "onnxruntime"},
    "program": {"runtime": "torch", "device": "cpu"},
    "openvino": {"runtime": "openvino", "device": "cpu"},
    "executorch": {"runtime": "torch", "device": "cpu"},
}
"""Format -> fields of the workload that differ from those of the Hugging Face model."""

PARENT = REFERENCE
"""Name of the parent in the result of `time_with_parent`."""


def time_with_parent(
    parent: Path, files: Mapping[str, Path], info: Mapping[str, Any], parent_ms: float | None
) -> dict[str, tuple[float, float]]:
    """Measures the latencies of an export's formats on its workload, in rounds together with its parent.

    Args:
        parent: Model folder of the parent.
        files: Format -> its file, as returned by `nas.exports.formats.formats_in`.
        info: The content of the export's subnet.json.
        parent_ms: Stated latency of the parent on this device, which sets the scale; None to use that of now.

    Returns:
        Format, and `PARENT` -> latency in milliseconds, and half of its 10-90 % spread.
    """
    workload = Workload.from_dict(info["workload"])
    threads = replace(workload, runtime="torch", dtype="float32")  # other runtimes take their threads from PyTorch
    inputs = workload_inputs(info, load_config(str(parent)))
    with benchmark_mode(threads):  # some read them when they are loaded
        calls = {
            format_name: _make_call(format_name, path, info, inputs, workload) for format_name, path in files.items()
        }
    reference = _make_call("torch", parent, info, inputs, workload)
    timed = measure(calls, reference, threads, reference_ms=parent_ms)
    return {name: (t.latency_ms, t.relative_spread * t.latency_ms) for name, t in timed.items()}


def memory_mb(folder: str, format_name: str) -> float | None:
    """Measures the peak memory that loading and running a format adds to this process, in MB, without libraries.

    The process must do nothing else. Returns None if `peak_memory_mb` has no counter, or if the workload would convert
    the model first.
    """
    info, path = read_export_info(Path(folder)), formats_in(Path(folder))[format_name]
    workload = replace(Workload.from_dict(info["workload"]), **FORMAT_WORKLOADS.get(format_name, {}))
    if format_name == "torch" and workload.runtime not in ("torch", "compile"):
        return None
    inputs = workload_inputs(info, load_config(folder))
    import_libraries(workload, folder, TASKS[info["task"]].auto_class)
    if format_name == "executorch":
        import executorch.extension.pybindings.portable_lib  # noqa: F401
        import transformers.exporters.exporter_executorch  # noqa: F401
    with benchmark_mode(workload):
        return peak_memory_mb(lambda: _make_call(format_name, path, info, inputs, workload), workload)


def _make_call(
    format_name: str, path: Path, info: Mapping[str, Any], inputs: Mapping[str, torch.Tensor], workload: Workload
) -> Callable[[], object]:
    """Returns a function that runs a format once on these inputs; a model folder runs in the workload's runtime."""
    if format_name in ("onnx", "int8"):
        return onnx_call(path, {name: inputs[name].numpy() for name in input_names(path)}, workload)
    if format_name == "torch":
        return prepare(load_export(path, info), inputs, workload)
    return partial(LOADERS[format_name](path), inputs)


def _load_onnx(path: Path) -> ForwardFunction:
    session = onnx_session(path, torch.get_num_threads())
    names, expected = ([port.name for port in ports] for ports in (session.get_outputs(), session.get_inputs()))

    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = session.run(names, {name: inputs[name].numpy() for name in expected})
        return {name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)}

    return run


def _load_program(path: Path) -> ForwardFunction:
    program = torch.export.load(path)
    module, expected = program.module(), program.graph_signature.user_inputs
    return lambda inputs: module(**{name: value for name, value in inputs.items() if name in expected})


def _load_openvino(path: Path) -> ForwardFunction:
    import openvino

    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(str(path), "CPU", threads)
    expected = [name for port in model.inputs for name in port.get_names()]

    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = model({name: inputs[name].numpy() for name in expected if name in inputs})
        return {name: torch.from_numpy(value) for port, value in outputs.items() for name in port.get_names()}

    return run


def _load_executorch(path: Path) -> ForwardFunction:
    from executorch.extension.pybindings import portable_lib
    from transformers.exporters import ExportedModel

    if portable_lib._threadpool_get_thread_count() != torch.get_num_threads():
        portable_lib._unsafe_reset_threadpool(torch.get_num_threads())  # programs loaded before stop working
    program = ExportedModel.from_pretrained(path.parent)
    runner = program.runners["model"]
    shapes = [runner.method.metadata.input_tensor_meta(i).sizes() for i in range(len(runner.metadata.kwargs))]
    largest = dict(zip(runner.metadata.kwargs, shapes, strict=True))
    texts = {name: shape for name, shape in largest.items() if len(shape) == 2}

    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name, (_, tokens) in texts.items():
            if inputs[name].shape[1] > tokens:
                raise InputError(
                    f"`{path}` takes at most {tokens} tokens, but `{name}` has {inputs[name].shape[1]}; set "
                    "`max_length` in subnet.json and run `nas convert` again."
                )
        batches = zip(*(inputs[name].split(shape[0]) for name, shape in largest.items()), strict=True)
        outputs = [program(**dict(zip(largest, batch, strict=True))) for batch in batches]
        return {name: torch.cat([outputs[name] for outputs in outputs]) for name in outputs[0]}

    return run


LOADERS: dict[str, Callable[[Path], ForwardFunction]] = {
    "onnx": _load_onnx,
    "int8": _load_onnx,
    "program": _load_program,
    "openvino": _load_openvino,
    "executorch": _load_executorch,
}
"""Format -> function that loads its file."""

"""RuntimeModel: wraps a format of an export so that it is called, scored and measured like a Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils import ModelOutput

from nas.exports.formats import formats_in, load_export, own_inputs, workload_inputs
from nas.exports.model_info import by_workload, read_export_info
from nas.modeling.own_code import register_own_code
from nas.tasks.context import TaskContext
from nas.tasks.loading import load_config
from predictors import Workload, measure
from predictors.measurement.memory import peak_memory_mb
from predictors.measurement.plan import import_libraries
from predictors.measurement.prepare import prepare
from predictors.measurement.rounds import benchmark_mode
from predictors.measurement.runtime import ForwardFunction
from predictors.measurement.runtimes import FORMATS
from predictors.measurement.timing import REFERENCE
from search_spaces import TASKS


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
            return load_export(path, context.recipe.task.type)
        return cls(FORMATS[format_name].load(path), context.config, context.task.outputs)

    def forward(self, **inputs: Any) -> ModelOutput:
        """Returns the outputs of the task by name."""
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        if "input_ids" in tensors:  # texts without padding bring no mask, which files of language models read
            tensors.setdefault("attention_mask", torch.ones_like(tensors["input_ids"]))
        outputs = self.run(tensors)
        return ModelOutput({name: outputs[name].float() for name in self.outputs})


PARENT = REFERENCE
"""Name of the parent in the result of `time_with_parent`."""


def time_with_parent(
    parent: Path, files: Mapping[str, Path], info: Mapping[str, Any], parent_ms: float | None
) -> dict[str, tuple[float, float]]:
    """Measures the latencies of an export's formats on a workload, in rounds together with its parent.

    Args:
        parent: Model folder of the parent.
        files: Format -> its file, as returned by `nas.exports.formats.formats_in`.
        info: The content of the export's subnet.json, under one workload.
        parent_ms: Stated latency of the parent on this device, which sets the scale; None to use that of now.

    Returns:
        Format, and `PARENT` -> latency in milliseconds, and half of its 10-90 % spread.
    """
    workload = Workload.from_dict(info["workload"])
    threads = replace(workload, runtime="torch", dtype="float32")  # other runtimes take their threads from PyTorch
    config = load_config(str(parent))
    inputs = own_inputs(info, config)
    with benchmark_mode(threads):  # some read them when they are loaded
        calls = {
            format_name: _make_call(format_name, path, info, inputs, workload) for format_name, path in files.items()
        }
    reference = _make_call("torch", parent, info, workload_inputs(info, config), workload)
    timed = measure(calls, reference, threads, reference_ms=parent_ms)
    return {name: (t.latency_ms, t.relative_spread * t.latency_ms) for name, t in timed.items()}


def memory_mb(folder: str, format_name: str, workload_name: str) -> float | None:
    """Measures the peak memory that loading and running a format adds to this process, in MB, without libraries.

    The process must do nothing else, and code of the folder must be trusted. Returns None if `peak_memory_mb` has no
    counter, or if the workload would convert the model first.
    """
    info, path = by_workload(read_export_info(Path(folder)))[workload_name], formats_in(Path(folder))[format_name]
    written = FORMATS.get(format_name)
    workload = replace(Workload.from_dict(info["workload"]), **(written.workload if written else {}))
    if format_name == "torch" and workload.runtime not in ("torch", "compile"):
        return None
    register_own_code(folder, trust=True)
    inputs = own_inputs(info, AutoConfig.from_pretrained(folder, trust_remote_code=False))
    import_libraries(workload, folder, TASKS[info["task"]].auto_class)
    for module in written.libraries if written else ():
        import_module(module)
    with benchmark_mode(workload):
        return peak_memory_mb(lambda: _make_call(format_name, path, info, inputs, workload), workload)


def _make_call(
    format_name: str, path: Path, info: Mapping[str, Any], inputs: Mapping[str, torch.Tensor], workload: Workload
) -> Callable[[], object]:
    """Returns a function that runs a format once on these inputs; a model folder runs in the workload's runtime."""
    if format_name == "torch":
        return prepare(load_export(path, info["task"]), inputs, workload)
    return FORMATS[format_name].prepare(path, inputs, workload)

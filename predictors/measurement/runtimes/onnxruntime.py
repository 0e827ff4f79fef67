"""ONNX Runtime; its files are ONNX files, in float32 or with products in int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predictors.measurement.halves import has_halves
from predictors.measurement.onnx_export import onnx_session, write_int8_onnx, write_onnx
from predictors.measurement.phases import on_device
from predictors.measurement.runtime import Arrays, Call, Format, ForwardFunction, Inputs, Runtime
from search_spaces.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

    from predictors.measurement.workload import Workload


class _OnnxRuntime(Runtime):
    def check(self, workload: Workload) -> None:
        """See `Runtime.check`; a GPU needs ONNX Runtime's own build for it."""
        super().check(workload)
        _providers(workload)

    def write(
        self, model: PreTrainedModel, inputs: Inputs, workload: Workload, folder: Path
    ) -> tuple[Path, dict[str, np.ndarray]]:
        """Writes an ONNX file; returns it and its inputs."""
        import torch
        from transformers.exporters.utils import onnx_feed

        file = folder / "model.onnx"
        with torch.inference_mode():  # a cache with an autograd graph cannot be traced
            model, moved = on_device(model, inputs, replace(workload, device="cpu"))
            write_onnx(model, moved, file, int8=workload.dtype == "int8", dynamic=False)
            return file, onnx_feed(_input_names(file), moved)

    def call(self, file: Path, arrays: Arrays, workload: Workload) -> Call:
        """Runs an ONNX file with a workload's threads and device; only needs ONNX Runtime and NumPy.

        Inputs are bound once; each call allocates its outputs.
        """
        import onnxruntime

        session = onnx_session(file, workload.threads, _providers(workload))
        device, index = ("cuda", workload.device_index) if workload.on_cuda else ("cpu", 0)
        binding = session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, index))
        for spec in session.get_outputs():
            binding.bind_output(spec.name, device, index)

        def run() -> list[np.ndarray]:
            session.run_with_iobinding(binding)
            return binding.copy_outputs_to_cpu()

        return run


def _input_names(file: Path) -> list[str]:
    """Names of the inputs of an ONNX file."""
    return [spec.name for spec in onnx_session(file).get_inputs()]


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


def _write(model: PreTrainedModel, inputs: Inputs, file: Path) -> None:
    write_onnx(model, inputs, file)


def _write_int8(model: PreTrainedModel, inputs: Inputs, file: Path) -> None:
    """Writes an int8 ONNX file, from the float32 one if it exists, which avoids tracing the model again."""
    plain = file.parent / "model.onnx"
    if plain.is_file() and not has_halves(model):
        write_int8_onnx(model, inputs, plain, file)
    else:
        write_onnx(model, inputs, file, int8=True)


def _load(file: Path) -> ForwardFunction:
    import torch

    session = onnx_session(file, torch.get_num_threads())
    names, expected = ([port.name for port in ports] for ports in (session.get_outputs(), session.get_inputs()))

    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = session.run(names, {name: inputs[name].numpy() for name in expected})
        return {name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)}

    return run


def _call(file: Path, inputs: Mapping[str, torch.Tensor], workload: Workload) -> Call:
    return ONNXRUNTIME.call(file, {name: inputs[name].numpy() for name in _input_names(file)}, workload)


ONNX = Format(
    name="onnx",
    file="onnx/model.onnx",
    write=_write,
    load=_load,
    call=_call,
    workload={"runtime": "onnxruntime"},
    extra="onnx",
)

INT8 = Format(
    name="int8",
    file="onnx/model_int8.onnx",
    write=_write_int8,
    load=_load,
    call=_call,
    workload={"runtime": "onnxruntime"},
    extra="onnx",
    rounds=True,
)

ONNXRUNTIME = _OnnxRuntime(
    name="onnxruntime",
    packages=("onnxruntime",),
    dtypes=("float32", "int8"),
    extra="onnx",
    extra_packages=("onnx", "onnxscript", "onnxruntime"),
    layer_dtypes=("int8",),
    formats=(ONNX, INT8),
)

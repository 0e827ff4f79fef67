"""OpenVINO on the CPU: graphs of one shape under a workload, files with dynamic shapes as exports."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from predictors.measurement.onnx_export import require
from predictors.measurement.openvino_export import OpenVinoFormat, compiled, openvino_format, trace
from predictors.measurement.phases import on_device
from predictors.measurement.runtime import Arrays, Call, Inputs, Runtime
from predictors.measurement.runtimes.openvino_int8 import INT8

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from predictors.measurement.workload import Workload

FLOAT = openvino_format("openvino", "openvino/openvino_model.xml", dtypes=("float32", "bfloat16", "float16"))

FORMATS: tuple[OpenVinoFormat, ...] = (FLOAT, INT8)


class _OpenVino(Runtime):
    def check(self, workload: Workload) -> None:
        """Also checks the packages that change a graph to the dtype."""
        super().check(workload)
        require(*_format_of(workload).packages, extra=self.extra, what=f"`workload.dtype={workload.dtype}`")

    def write(
        self, model: PreTrainedModel, inputs: Inputs, workload: Workload, folder: Path
    ) -> tuple[Path, dict[str, np.ndarray]]:
        """Writes a graph with fixed shapes; returns its file and its inputs."""
        import openvino
        import torch
        from transformers.exporters.utils import openvino_feed

        file = folder / "model.xml"
        with torch.inference_mode():  # a cache with an autograd graph cannot be traced
            model, moved = on_device(model, inputs, replace(workload, dtype="float32"))
            graph = _format_of(workload).change(trace(model, moved, dynamic=False))
            openvino.save_model(graph, file, compress_to_fp16=False)
            return file, openvino_feed(graph, moved)

    def call(self, file: Path, arrays: Arrays, workload: Workload) -> Call:
        """Runs a graph with a workload's threads and precision; only needs OpenVINO and NumPy."""
        request = compiled(str(file), workload.dtype, workload.threads, NUM_STREAMS=1).create_infer_request()
        return partial(request.infer, dict(arrays), share_inputs=True)


def _format_of(workload: Workload) -> OpenVinoFormat:
    """The format whose graphs have the dtype of a workload."""
    return next((written for written in FORMATS if workload.dtype in written.dtypes), FLOAT)


OPENVINO = _OpenVino(
    name="openvino",
    packages=("openvino",),
    dtypes=tuple(dtype for written in FORMATS for dtype in written.dtypes),
    devices=("cpu",),
    extra="openvino",
    extra_packages=("openvino",),
    formats=FORMATS,
    in_calling_thread=False,
)

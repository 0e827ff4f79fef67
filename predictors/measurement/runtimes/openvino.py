"""OpenVINO on the CPU; its files are graphs with dynamic shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from predictors.measurement.onnx_export import require
from predictors.measurement.openvino_export import OpenVinoFormat, compiled, openvino_format, trace
from predictors.measurement.phases import on_device
from predictors.measurement.runtime import Call, Inputs, Runtime
from predictors.measurement.runtimes.openvino_int8 import INT8

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from predictors.measurement.workload import Workload

FLOAT = openvino_format("openvino", "openvino/openvino_model.xml", dtypes=("float32", "bfloat16", "float16"))

FORMATS: tuple[OpenVinoFormat, ...] = (FLOAT, INT8)


class _OpenVino(Runtime):
    def needs(self, workload: Workload) -> Sequence[str]:
        """The packages of the runtime, and those that change a graph to the dtype."""
        return (*self.packages, *_format_of(workload).packages)

    def check(self, workload: Workload) -> None:
        """Also checks the packages that change a graph to the dtype."""
        super().check(workload)
        require(*_format_of(workload).packages, extra=self.extra, what=f"`workload.dtype={workload.dtype}`")

    def prepare(self, model: PreTrainedModel, inputs: Inputs, workload: Workload) -> Call:
        """An inference request of a graph with fixed shapes."""
        from transformers.exporters.utils import openvino_feed

        model, moved = on_device(model, inputs, replace(workload, dtype="float32"))
        graph = _format_of(workload).change(trace(model, moved, dynamic=False))
        request = compiled(graph, workload.dtype, workload.threads, NUM_STREAMS=1).create_infer_request()
        return partial(request.infer, openvino_feed(graph, moved), share_inputs=True)


def _format_of(workload: Workload) -> OpenVinoFormat:
    """The format whose graphs have the dtype of a workload."""
    return next((written for written in FORMATS if workload.dtype in written.dtypes), FLOAT)


OPENVINO = _OpenVino(
    name="openvino",
    packages=("torch", "transformers", "onnx", "openvino"),
    dtypes=tuple(dtype for written in FORMATS for dtype in written.dtypes),
    devices=("cpu",),
    extra="openvino",
    extra_packages=("openvino",),
    formats=FORMATS,
    in_calling_thread=False,
)

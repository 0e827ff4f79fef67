"""OpenVINO files of Hugging Face models, with dynamic shapes; graphs compiled for the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predictors.measurement.file_errors import file_errors_as_input_errors
from predictors.measurement.halves import has_halves, in_float32
from predictors.measurement.onnx_export import cases_of, quiet_export, require, require_close
from predictors.measurement.rounding import allowed_difference, largest_difference, leaf_outputs
from predictors.measurement.runtime import Format, ForwardFunction, Inputs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from predictors.measurement.workload import Dtype

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""Dtype of a workload -> OpenVINO's name of it."""

RUNTIME_OPTIONS = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Settings that go with a graph, also where another library loads its file. OpenVINO would round the inputs of int8
layers once more, by groups of channels, on its own."""

Change = Callable[[Any], Any]
"""Changes the graph of a model, as a quantization does."""


@dataclass(frozen=True)
class OpenVinoFormat(Format):
    """A file that OpenVINO executes.

    Attributes:
        dtypes: Dtypes of workloads whose models are such graphs too.
        change: What is done to the traced graph.
        packages: What that needs.
    """

    dtypes: tuple[Dtype, ...] = ()
    change: Change = lambda graph: graph
    packages: tuple[str, ...] = ()


def openvino_format(
    name: str,
    file: str,
    dtypes: tuple[Dtype, ...],
    *,
    change: Change = lambda graph: graph,
    packages: tuple[str, ...] = (),
    rounds: bool = False,
) -> OpenVinoFormat:
    """A file of a graph that may be changed after tracing."""
    return OpenVinoFormat(
        name=name,
        file=file,
        write=partial(_write, change, ("openvino", *packages), rounds),
        load=_load,
        workload={"runtime": "openvino", "device": "cpu"},
        extra="openvino",
        rounds=rounds,
        dtypes=dtypes,
        change=change,
        packages=packages,
    )


def trace(model: PreTrainedModel, inputs: Inputs, *, dynamic: bool) -> Any:
    """The graph of a model, for the shapes of its inputs or for any batch size and length."""
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter

    with quiet_export(model, "OpenVINO"):
        graph = OpenVINOExporter().export(model, dict(inputs), OpenVINOConfig(stateful=False, dynamic=dynamic)).program
    for name, value in RUNTIME_OPTIONS.items():
        graph.set_rt_info(value, ["runtime_options", name])
    return graph


def compiled(graph: Any, dtype: str, threads: int, **hints: Any) -> Any:
    """A graph, or the file of one, compiled for the CPU."""
    import openvino

    precision = PRECISIONS.get(dtype, "f32")
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, **hints}
    return openvino.Core().compile_model(graph, "CPU", hints)


def _write(
    change: Change, packages: Sequence[str], rounds: bool, model: PreTrainedModel, inputs: Inputs, file: Path
) -> None:
    """Writes a file and compares its outputs with the model's, on the inputs and on a batch of another shape."""
    require(*packages, extra="openvino", what="an OpenVINO model")
    import openvino

    is_half, model, cases = has_halves(model), in_float32(model), cases_of(inputs)
    openvino.save_model(change(trace(model, inputs, dynamic=True)), file, compress_to_fp16=is_half)
    run = _load(file)
    difference = max(_difference(run(case), leaf_outputs(model, case)) for case in cases)
    require_close(difference, allowed_difference(model, cases, int8=rounds), "an OpenVINO model")


def _difference(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    return largest_difference(found, {name: tensor for name, tensor in expected.items() if name in found})


def _load(file: Path) -> ForwardFunction:
    import torch

    with file_errors_as_input_errors(file):
        model = compiled(str(file), "float32", torch.get_num_threads())
    expected = [name for port in model.inputs for name in port.get_names()]

    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = model({name: inputs[name].numpy() for name in expected if name in inputs})
        return {name: torch.from_numpy(value) for port, value in outputs.items() for name in port.get_names()}

    return run

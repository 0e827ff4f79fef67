"""Formats: converts the Hugging Face model of an exported folder to ONNX, torch.export, OpenVINO and ExecuTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from nas.exports.reload import scored_outputs
from nas.runs.files import read_json
from nas.tasks.dummy_inputs import dummy_inputs
from predictors import Workload
from predictors.measurement.onnx_export import (
    half_length,
    quiet_export,
    require,
    require_close,
    write_int8_onnx,
    write_onnx,
)
from predictors.measurement.rounding import allowed_difference, largest_difference
from search_spaces import TASKS, InputError
from search_spaces.errors import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ExportInfo = Mapping[str, Any]
"""The content of an export's subnet.json."""


def _write_onnx(model: PreTrainedModel, info: ExportInfo, file: Path) -> None:
    write_onnx(model, tracing_inputs(model, info), file)


def _write_int8(model: PreTrainedModel, info: ExportInfo, file: Path) -> None:
    """Writes an int8 ONNX file, from the float32 one if it exists, which avoids tracing the model again."""
    plain = file.parent / "model.onnx"
    if plain.is_file():
        write_int8_onnx(model, tracing_inputs(model, info), plain, file)
    else:
        write_onnx(model, tracing_inputs(model, info), file, int8=True)


def _write_program(model: PreTrainedModel, info: ExportInfo, file: Path) -> None:
    """Writes a `torch.export` program with a dynamic batch size and sequence length."""
    from transformers.exporters import DynamoConfig, DynamoExporter

    with quiet_export(model, "torch.export"):
        exported = DynamoExporter().export(model, tracing_inputs(model, info), DynamoConfig(dynamic=True))
        torch.export.save(getattr(exported, "program", exported), file)


def _write_openvino(model: PreTrainedModel, info: ExportInfo, file: Path) -> None:
    require("openvino", extra="openvino", what="an OpenVINO model")
    import openvino
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter

    with quiet_export(model, "OpenVINO"):
        exporter = OpenVINOExporter()
        graph = exporter.export(
            model, tracing_inputs(model, info), OpenVINOConfig(stateful=False, dynamic=True)
        ).program
    openvino.save_model(graph, file, compress_to_fp16=False)


def _write_executorch(model: PreTrainedModel, info: ExportInfo, file: Path) -> None:
    """Writes a program for ExecuTorch's XNNPACK kernels, and a manifest with the names of its inputs and outputs.

    Its memory is planned for the batch size of the workload and for the longer of its sequence length and the length
    to which texts are truncated.
    """
    require("executorch", extra="executorch", what="an ExecuTorch program")
    from torch.export import Dim
    from transformers.exporters import ExecutorchConfig, ExecutorchExporter

    workload = Workload.from_dict(info["workload"])
    if workload.sequence_length is not None:
        longest = max(workload.sequence_length, info.get("max_length", 1))
        workload = replace(workload, sequence_length=longest)
    inputs = dummy_inputs(info["task"], model.config, workload)
    sizes = {name: tensor.shape[: 2 if tensor.ndim == 2 else 1] for name, tensor in inputs.items()}  # batch, length
    bounds = {
        name: {axis: Dim.AUTO(min=1, max=size) for axis, size in enumerate(shape) if size > 1}
        for name, shape in sizes.items()
    }
    with quiet_export(model, "ExecuTorch"), torch.inference_mode():
        with _eager_attention(model):
            config = ExecutorchConfig(dynamic_shapes=bounds)
            exported = ExecutorchExporter().export(model, forward_arguments(model, inputs), config)
        cases, names = (
            [forward_arguments(model, case) for case in (inputs, half_length(inputs))],
            TASKS[info["task"]].outputs,
        )
        difference = float(np.max([_max_difference(model, exported, case, names) for case in cases]))
        allowed = allowed_difference(model, cases)
    require_close(difference, allowed, "an ExecuTorch program")
    exported.config = exported.generation_config = None  # the parent folder holds them
    exported.save_pretrained(file.parent)


def _max_difference(model: PreTrainedModel, program: Any, arguments: Mapping[str, Any], names: Sequence[str]) -> float:
    return largest_difference(*(scored_outputs(run(**arguments), names, arguments) for run in (program, model)))


@contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Uses eager attention: XNNPACK has its operators, but not that of SDPA for queries without a visible key."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)


FORMATS: dict[str, tuple[str, Callable[[PreTrainedModel, ExportInfo, Path], None]]] = {
    "onnx": ("onnx/model.onnx", _write_onnx),
    "int8": ("onnx/model_int8.onnx", _write_int8),
    "program": ("program/model.pt2", _write_program),
    "openvino": ("openvino/openvino_model.xml", _write_openvino),
    "executorch": ("executorch/model.pte", _write_executorch),
}
"""Name -> path in the folder, and the function that writes the file."""


def parse_formats(text: str) -> list[str]:
    """Parses a list of formats such as ``onnx,int8``.

    Raises:
        InputError: If a name is not in `FORMATS`.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FORMATS:
            raise InputError(
                f"A format must be one of {', '.join(FORMATS)}, but got `{name}`; {did_you_mean(name, FORMATS)}."
            )
    return list(dict.fromkeys(names))


def convert(folder: Path, formats: Sequence[str]) -> dict[str, Path]:
    """Writes the model of an exported folder in other formats into the same folder.

    ONNX and ExecuTorch files are run and compared with the model at once; `nas verify` compares all formats.

    Returns:
        Format -> its file.

    Raises:
        InputError: If the folder is not an export, a package is missing, or the model cannot be traced.
    """
    info = read_export_info(folder)
    if not formats:
        return {}
    model = load_export(folder, info)
    written = {}
    for name in formats:
        file = folder / FORMATS[name][0]
        file.parent.mkdir(parents=True, exist_ok=True)
        FORMATS[name][1](model, info, file)
        written[name] = file
    return written


def formats_in(folder: Path) -> dict[str, Path]:
    """Returns the formats in a folder: name -> file; the Hugging Face model (``torch``) is first."""
    files = {name: folder / file for name, (file, _) in FORMATS.items()}
    return {"torch": folder, **{name: file for name, file in files.items() if file.is_file()}}


def size_mb(format_name: str, path: Path) -> float:
    """Returns the size of a format's weights and graph on disk, in MB."""
    files = path.glob("*.safetensors") if format_name == "torch" else path.parent.glob(f"{path.stem}.*")
    return sum(file.stat().st_size for file in files) / 1e6


def read_export_info(folder: Path) -> dict[str, Any]:
    """Reads the subnet.json of an export.

    Raises:
        InputError: If the folder is not an export.
    """
    if not (folder / "subnet.json").is_file():
        raise InputError(f"`{folder}` must be an export, but it has no subnet.json; `nas export` writes one.")
    return dict(read_json(folder / "subnet.json"))


def load_export(folder: Path, info: ExportInfo) -> PreTrainedModel:
    """Loads the model of an export with the head of its task."""
    auto = getattr(transformers, TASKS[info["task"]].auto_class)
    return auto.from_pretrained(folder, trust_remote_code=False).eval()


def workload_inputs(info: ExportInfo, config: Any) -> dict[str, torch.Tensor]:
    """Returns random inputs of the workload on which an export was measured."""
    return dummy_inputs(info["task"], config, Workload.from_dict(info["workload"]))


def tracing_inputs(model: PreTrainedModel, info: ExportInfo) -> dict[str, Any]:
    """Returns the inputs for tracing, a batch of two: a batch of one would be traced as a constant."""
    workload = replace(Workload.from_dict(info["workload"]), batch_size=2)
    return forward_arguments(model, dummy_inputs(info["task"], model.config, workload))


def forward_arguments(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Returns the arguments of one forward pass; a generative model runs it without a key-value cache."""
    return {**inputs, "use_cache": False} if model.can_generate() else dict(inputs)

"""Formats: what an exported folder can hold besides its Hugging Face model, each made from that model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from nas.run import read_json
from nas.task_types import TASK_TYPES
from predictors import Workload
from predictors.onnx_export import quiet_export, require, write_onnx
from search_spaces import AUTO_CLASSES, InputError
from search_spaces.errors import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Inputs = Mapping[str, torch.Tensor]


def _onnx(model: PreTrainedModel, inputs: Inputs, file: Path) -> None:
    write_onnx(model, called_with(model, inputs), file)


def _int8(model: PreTrainedModel, inputs: Inputs, file: Path) -> None:
    write_onnx(model, called_with(model, inputs), file, int8=True)


def _program(model: PreTrainedModel, inputs: Inputs, file: Path) -> None:
    """A `torch.export` program whose batch and sequence may have any size."""
    from transformers.exporters import DynamoConfig, DynamoExporter

    with quiet_export(model, "torch.export"):
        exported = DynamoExporter().export(model, called_with(model, inputs), DynamoConfig(dynamic=True))
        torch.export.save(getattr(exported, "program", exported), file)


def _openvino(model: PreTrainedModel, inputs: Inputs, file: Path) -> None:
    require("openvino", extra="openvino", what="an OpenVINO model")
    import openvino
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter

    with quiet_export(model, "OpenVINO"):
        exporter = OpenVINOExporter()
        graph = exporter.export(
            model, called_with(model, inputs), OpenVINOConfig(stateful=False, dynamic=True)
        ).program
    openvino.save_model(graph, file, compress_to_fp16=False)


FORMATS: dict[str, tuple[str, Callable[[PreTrainedModel, Inputs, Path], None]]] = {
    "onnx": ("onnx/model.onnx", _onnx),
    "int8": ("onnx/model_int8.onnx", _int8),
    "program": ("program/model.pt2", _program),
    "openvino": ("openvino/openvino_model.xml", _openvino),
}
"""Name -> the file in the folder, and what writes it."""


def parse_formats(text: str) -> list[str]:
    """Reads a list like ``onnx,int8``.

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
    """Writes an exported folder's model in other formats, into the same folder.

    ONNX files are run in ONNX Runtime and compared with the model (see `write_onnx`); `nas verify` compares all.

    Raises:
        InputError: If the folder is not an export, a package is missing, or the model cannot be traced.
    """
    story = read_story(folder)
    if not formats:
        return {}
    model = load_model(folder, story)
    inputs = story_inputs(story, model.config, batch_size=2)
    written = {}
    for name in formats:
        file = folder / FORMATS[name][0]
        file.parent.mkdir(parents=True, exist_ok=True)
        FORMATS[name][1](model, inputs, file)
        written[name] = file
    return written


def present(folder: Path) -> dict[str, Path]:
    """The formats that a folder holds: name -> file, the Hugging Face model (``torch``) first."""
    files = {name: folder / file for name, (file, _) in FORMATS.items()}
    return {"torch": folder, **{name: file for name, file in files.items() if file.is_file()}}


def size_mb(form: str, path: Path) -> float:
    """What a format's weights and graph take on disk, in MB."""
    files = path.glob("*.safetensors") if form == "torch" else path.parent.glob(f"{path.stem}.*")
    return sum(file.stat().st_size for file in files) / 1e6


def read_story(folder: Path) -> dict[str, Any]:
    """The subnet.json of an export.

    Raises:
        InputError: If the folder is not an export.
    """
    if not (folder / "subnet.json").is_file():
        raise InputError(f"`{folder}` must be an export with a subnet.json; `nas export` writes one.")
    return dict(read_json(folder / "subnet.json"))


def load_model(folder: Path, story: Mapping[str, Any]) -> PreTrainedModel:
    """The model of an export, for the task it was exported for."""
    auto = getattr(transformers, AUTO_CLASSES[story["task"]])
    return auto.from_pretrained(folder, trust_remote_code=False).eval()


def story_inputs(story: Mapping[str, Any], config: Any, batch_size: int | None = None) -> dict[str, torch.Tensor]:
    """Random inputs of the workload that an export was measured on."""
    workload = dict(story["workload"])
    if batch_size is not None:
        workload["batch_size"] = batch_size
    generator = torch.Generator().manual_seed(0)
    return TASK_TYPES[story["task"]].dummy_inputs(config, Workload.from_dict(workload), generator)


def called_with(model: PreTrainedModel, inputs: Inputs) -> dict[str, Any]:
    """Inputs of one pass; a model that generates keeps no keys and values in it."""
    return {**inputs, "use_cache": False} if model.can_generate() else dict(inputs)

"""Converts the Hugging Face model of an exported folder to the formats of runtimes, and lists those in a folder."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from nas.exports.model_info import ExportInfo, model_info
from nas.modeling.own_code import MODELING_FILES
from nas.supernets.checkpoint import require_all_weights
from nas.tasks.dummy_inputs import dummy_inputs
from nas.tasks.images import with_image_size
from predictors import Workload
from predictors.measurement.file_errors import file_errors_as_input_errors
from predictors.measurement.image_tower import SHAPES
from predictors.measurement.runtimes import FORMATS
from search_spaces import TASKS, InputError, SubnetConfig
from search_spaces.dimension import FULL
from search_spaces.errors import did_you_mean
from search_spaces.tasks import RETRIEVAL_TASK, TOWERS_TASK

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    """Writes the Hugging Face model of a folder in other formats into the same folder.

    ONNX, OpenVINO and ExecuTorch files are run and compared with the model at once; `nas verify` compares all formats.

    Returns:
        Format -> its file.

    Raises:
        InputError: If the folder holds no model of a known task, a package is missing, or it cannot be traced.
    """
    info = model_info(folder)
    if not formats:
        return {}
    if info["task"] in (TOWERS_TASK, RETRIEVAL_TASK):
        raise _only_as_model(folder, "has two towers, which are", formats)
    model = load_export(folder, info["task"])
    if SHAPES in tracing_inputs(model, info):  # positions are computed one image after another
        raise _only_as_model(folder, "reads images of different shapes in a batch; it is", formats)
    written = {}
    for name in formats:
        inputs = largest_inputs(model, info) if FORMATS[name].is_bounded else tracing_inputs(model, info)
        written[name] = _write_format(name, model, inputs, folder)
    return written


def _only_as_model(folder: Path, why: str, formats: Sequence[str]) -> InputError:
    return InputError(
        f"`{folder}` {why} exported as a Hugging Face model only, but got {', '.join(formats)}; leave out `--to`."
    )


def _write_format(name: str, model: PreTrainedModel, inputs: Mapping[str, Any], folder: Path) -> Path:
    """Writes a format next to the others and moves it to its place once it is complete; returns its file."""
    target = folder / FORMATS[name].file
    with tempfile.TemporaryDirectory(dir=folder, prefix=".convert-") as work:
        staged = Path(work) / target.relative_to(folder)
        staged.parent.mkdir(parents=True)
        for other in target.parent.glob("*") if target.parent.is_dir() else ():
            if other.is_file() and other.stem != staged.stem:
                shutil.copy2(other, staged.parent)  # int8 is made from float32
        FORMATS[name].write(model, inputs, staged)
        target.parent.mkdir(exist_ok=True)
        for file in staged.parent.iterdir():
            os.replace(file, target.parent / file.name)
    return target


WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
OURS = ("README.md", "subnet.json", "checkpoints", *MODELING_FILES)
"""What an older export may hold and a newer one in its place not."""


def require_replaceable(out: Path, new: Path) -> None:
    """Raises InputError if an older export holds something that neither a new one nor any other writes.

    Args:
        out: The older export, if it exists.
        new: A folder with the files of the new one.
    """
    known = {*OURS, *(path.name for path in new.iterdir()), *(each.file.split("/")[0] for each in FORMATS.values())}
    for path in sorted(out.iterdir()) if out.is_dir() else ():
        if path.name not in known and not any(path.match(pattern) for pattern in WEIGHTS):
            raise InputError(
                f"`{out}` is an export that would be replaced, but it holds `{path.name}`, which the new one does not "
                "write; move it away, or choose another folder with --out."
            )


def formats_in(folder: Path) -> dict[str, Path]:
    """Returns the formats in a folder: name -> file; the Hugging Face model (``torch``) is first."""
    files = {name: folder / written.file for name, written in FORMATS.items()}
    return {"torch": folder, **{name: file for name, file in files.items() if file.is_file()}}


def size_mb(format_name: str, path: Path) -> float:
    """Returns the size of a format's weights and graph on disk, in MB."""
    files = path.glob("*.safetensors") if format_name == "torch" else path.parent.glob(f"{path.stem}.*")
    return sum(file.stat().st_size for file in files) / 1e6


def load_export(folder: Path, task: str) -> PreTrainedModel:
    """Loads the model of an export with the head of a task.

    Raises:
        InputError: If its files cannot be read, or a weight is missing, has another shape, or is in the files only.
    """
    auto = getattr(transformers, TASKS[task].auto_class)
    options = {"trust_remote_code": False, "use_safetensors": True}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with file_errors_as_input_errors(folder):
        model, report = auto.from_pretrained(folder, **options)
    require_all_weights(model, report, f"`{folder}`", "write it again with `nas export`")
    return model.eval()


def workload_inputs(info: ExportInfo, config: Any) -> dict[str, torch.Tensor]:
    """Returns random inputs of the workload on which an export was measured."""
    return dummy_inputs(info["task"], config, Workload.from_dict(info["workload"]))


def own_inputs(info: ExportInfo, parent: Any) -> dict[str, torch.Tensor]:
    """Returns the same examples for an export: as smaller images, or with fewer pieces as other, and more, tokens.

    Args:
        info: The content of its subnet.json.
        parent: Config of its parent.
    """
    size = SubnetConfig.from_dict(info["subnet"]).input_size if "subnet" in info else FULL
    if size == FULL:
        return workload_inputs(info, parent)
    if not TASKS[info["task"]].reads_text:
        return workload_inputs(info, with_image_size(parent, int(size)))
    config, workload = copy.deepcopy(parent), Workload.from_dict(info["workload"])
    config.update({"vocab_size": int(size)})
    longer = replace(workload, sequence_length=info.get("sequence_length", workload.sequence_length))
    return dummy_inputs(info["task"], config, longer)


def tracing_inputs(model: PreTrainedModel, info: ExportInfo) -> dict[str, Any]:
    """Returns the inputs for tracing, a batch of two: a batch of one would be traced as a constant."""
    workload = replace(Workload.from_dict(info["workload"]), batch_size=2)
    return forward_arguments(model, dummy_inputs(info["task"], model.config, workload))


def largest_inputs(model: PreTrainedModel, info: ExportInfo) -> dict[str, Any]:
    """Returns inputs with the workload's batch size and the longer of its length and that of truncated texts."""
    workload = Workload.from_dict(info["workload"])
    if workload.sequence_length is not None:
        longest = max(workload.sequence_length, info.get("max_length", 1))
        workload = replace(workload, sequence_length=longest)
    return forward_arguments(model, dummy_inputs(info["task"], model.config, workload))


def forward_arguments(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Returns the arguments of one forward pass; a generative model runs it without a key-value cache."""
    return {**inputs, "use_cache": False} if model.can_generate() else dict(inputs)

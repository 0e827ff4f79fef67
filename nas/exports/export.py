"""Export: writes a subnetwork as a Hugging Face model folder, and checks that it reloads with the same outputs."""

from __future__ import annotations

import copy
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from nas.exports.card import licence_of, write_card
from nas.exports.formats import convert, require_replaceable, size_mb
from nas.exports.reload import scored_outputs
from nas.exports.trust import LOADING_KEYS, SCORING_KEYS, require_trusted_recipe
from nas.exports.vector_map import add_vector_map
from nas.fronts.point import Point
from nas.modeling.cast import cast_weights, exact_sums
from nas.modeling.modeling_nas import PREFIX, counterpart
from nas.modeling.registration import stock_classes
from nas.runs.files import check_place, only_writer, replace_folder, write_json
from nas.runs.run import Run
from nas.runs.target import Target
from nas.supernets.device import moved
from nas.supernets.load import load_supernet
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import evaluation_mode
from predictors import Workload
from predictors.measurement.halves import has_halves, in_own_dtype
from predictors.measurement.rounding import ROUNDINGS, largest_difference
from search_spaces import TASKS, InputError, SubnetConfig, family_of
from search_spaces.errors import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-5
DTYPES = ("float32", "bfloat16", "float16")
"""Dtypes that the weights of an export may have."""


@dataclass(frozen=True)
class FinishedModel:
    """A subnetwork that was trained on: a model of its own in the place of the supernet.

    Attributes:
        model: The only subnetwork that it has.
    """

    model: PreTrainedModel

    def to(self, device: torch.device | str) -> FinishedModel:
        """Moves the model, see `moved`."""
        moved(self.model, device)
        return self

    def activate(self, subnet: SubnetConfig) -> None:
        """Does nothing: the subnetwork is active."""

    def extract(self, subnet: SubnetConfig) -> PreTrainedModel:
        """A copy of the model."""
        return copy.deepcopy(self.model)


Weights = Supernet | FinishedModel
"""What has the weights of a subnetwork."""


def weights_of(run: Run, supernet: Supernet, subnet: SubnetConfig, context: TaskContext) -> Weights:
    """The finished model of a subnetwork, if the run has one, else the supernet."""
    folder = run.finished / subnet.key
    if not folder.exists():
        return supernet
    return FinishedModel(moved(context.load_model(folder), supernet.model.device).eval())


def save_subnet(supernet: Weights, subnet: SubnetConfig, context: TaskContext, folder: Path) -> None:
    """Writes the extracted model, its processor and, unless it is a stock model, its modeling code."""
    save_model(supernet.extract(subnet), context, folder)
    context.save_processor(folder, subnet)


def save_model(model: PreTrainedModel, context: TaskContext, folder: Path, *, weights: bool = True) -> None:
    """Writes a model in the parent's dtype with its modeling code, unless it is a stock model.

    Without weights if ``weights`` is false; the model is cast in place.
    """
    cast_weights(model, context.dtype)
    if type(model).__name__.startswith(PREFIX):
        enable_remote_code(model, context.auto_class)
    model.save_pretrained(folder)
    for file in () if weights else folder.glob("*.safetensors*"):
        file.unlink()


def enable_remote_code(model: PreTrainedModel, auto_class: str) -> None:
    """Makes ``save_pretrained`` copy the modeling code and write ``auto_map``, for ``trust_remote_code=True``.

    The folder also loads with the heads of the other tasks of its family.
    """
    type(model.config).register_for_auto_class()
    type(model).register_for_auto_class(auto_class)
    stock: Any = type(model.config).__mro__[1]
    others = [TASKS[task].auto_class for task in family_of(stock.model_type).tasks]
    found = {auto: stock_classes(getattr(transformers, auto), stock)[0] for auto in ("AutoModel", *others)}
    classes = {auto: counterpart(each) for auto, each in found.items() if auto != auto_class}
    model.config.auto_map = {
        auto: f"{each.__module__.rpartition('.')[2]}.{each.__name__}" for auto, each in classes.items()
    }


def export_subnet(
    run: Run,
    point: Point,
    out: str | Path,
    formats: Sequence[str] = (),
    *,
    parent_width: bool = False,
    dtype: str = "",
    trust: bool = False,
) -> Path:
    """Exports one subnetwork of a run.

    The model is written to a temporary folder and loaded by a separate Python process through the auto class. The
    folder is renamed to its final name only if this process computes the outputs of the supernet.

    Args:
        run: A run whose supernet is trained.
        point: The subnetwork to export, with the values for ``subnet.json``.
        out: The folder to write; an existing folder must be an earlier export.
        formats: Names in `nas.exports.formats.FORMATS` that are written into the folder too.
        parent_width: Whether narrower vectors get a linear map to the width of the parent's, fitted on the data.
        dtype: One of `DTYPES`, of its weights; default: that of the parent.
        trust: Whether code of the parent, and functions that the recipe of the run names for its data, may run;
            without the map no function is used.

    Returns:
        The folder.

    Raises:
        InputError: If the folder holds something else, the reloaded model differs, a format cannot be written, the
            dtype is unknown, or there are no narrower vectors to map.
    """
    out = Path(out)
    if dtype and dtype not in DTYPES:
        raise InputError(
            f"--dtype must be one of {', '.join(DTYPES)}, but got `{dtype}`; {did_you_mean(dtype, DTYPES)}."
        )
    if os.path.lexists(out) and not (out / "subnet.json").is_file():
        raise InputError(f"`{out}` exists and is not an export; choose another folder with --out.")
    check_place(out, "--out")
    with only_writer(out):
        if not trust:
            require_trusted_recipe(run.folder, run.recipe, SCORING_KEYS if parent_width else LOADING_KEYS)
        return _export(run, point, out, formats, parent_width, dtype)


def _export(run: Run, point: Point, out: Path, formats: Sequence[str], parent_width: bool, dtype: str) -> Path:
    """Writes an export; see `export_subnet`."""
    context = context_of(run)
    if dtype:
        context.dtype = getattr(torch, dtype)
    supernet = weights_of(run, load_supernet(run, context)[0], point.subnet, context)
    work = out.with_name(f".{out.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        save_subnet(supernet, point.subnet, context, work)
        own = context.of(point.subnet) if point.subnet.changes("vocabulary") else None
        info = {**provenance(run, own), **point.to_dict()}
        if dtype:
            info |= {"dtype": dtype, "values": {**point.values, "size_mb": size_mb("torch", work)}}
        if parent_width:
            info["parent_width"] = add_vector_map(work, supernet.extract(point.subnet), context)
        write_json(work / "subnet.json", info)
        inputs, expected = supernet_outputs(supernet, point.subnet, context)
        del supernet
        gc.collect()  # a process that loads the export takes its place in memory
        check_reload(work, inputs, expected, point.subnet, context)
        convert(work, formats)
        write_card(work, info)
        require_replaceable(out, work)
        replace_folder(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def context_of(run: Run) -> TaskContext:
    """The context of a run with its own parent as the model: a run that was moved holds all that an export needs."""
    return TaskContext(run.recipe.model_copy(update={"model": str(run.parent)}))


def provenance(run: Run, own: TaskContext | None = None) -> dict[str, Any]:
    """Returns where an export comes from and how its values were measured; a local model is named without its path.

    Args:
        run: Its run.
        own: The context with a tokenizer of its own, if it has one: its inputs have as many more tokens.
    """
    recipe = run.recipe
    verified = run.verified_points() if run.front_file.is_file() else []
    parent = next((point for point in verified if point.source == "parent"), None)
    return {
        "base_model": None if is_local(recipe.model) else recipe.model,
        "name": Path(recipe.model).name,
        "license": licence_of(recipe.model) if Path(recipe.model).exists() or not is_local(recipe.model) else None,
        "task": recipe.task.type,
        "split": Path(recipe.task.test).name,
        "max_length": recipe.task.max_length,
        **_measured_under(run.target, own),
        **({"workloads": {each.name: _measured_under(each, own) for each in run.targets}} if run.target.name else {}),
        "parent": None if parent is None else {"values": parent.values, "errors": parent.errors},
    }


def _measured_under(target: Target, own: TaskContext | None) -> dict[str, Any]:
    """The workload and the device of a latency, and the tokens of inputs if there is a tokenizer of its own."""
    length = {} if own is None else {"sequence_length": own.in_own_tokens(target.workload).sequence_length}
    return {"workload": target.workload.to_dict(), "device": target.device, **length}


def is_local(model: str) -> bool:
    """Whether a model is a folder, be it of another machine."""
    return Path(model).is_absolute() or Path(model).exists()


def check_reload(
    folder: Path,
    inputs: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    subnet: SubnetConfig,
    context: TaskContext,
) -> None:
    """Loads a folder in a clean process and compares its outputs with those of the supernet, see `supernet_outputs`.

    Raises:
        InputError: If they differ by more than 1e-5, or the folder does not load.
    """
    try:
        outputs = outputs_in_subprocess("torch", folder, context.recipe.task.type, inputs)
    except ReloadError as error:
        raise InputError(f"the export failed: the written model does not load ({error}).") from None
    check_equal(outputs, expected, subnet)


class ReloadError(Exception):
    """A clean process could not load or run a model; the message is the last line of its errors."""


def outputs_in_subprocess(
    format_name: str, path: Path, task: str, inputs: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Runs an export in a clean process.

    Args:
        format_name: ``torch`` or a name in `nas.exports.formats.FORMATS`.
        path: The model folder, or the file of the format.
        task: Name of the model's task.
        inputs: Inputs of the model.

    Returns:
        Name -> output, of those that `nas.exports.reload.scored_outputs` compares.

    Raises:
        ReloadError: If the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs_file, outputs_file = Path(folder, "inputs.safetensors"), Path(folder, "outputs.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, inputs_file)
        script = str(files("nas.exports") / "reload.py")
        command = [
            sys.executable,
            "-P",
            script,
            format_name,
            str(path),
            TASKS[task].auto_class,
            ",".join(TASKS[task].outputs),
            str(inputs_file),
            str(outputs_file),
        ]
        process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        if process.returncode:
            raise ReloadError((process.stderr.strip().splitlines() or ["it was killed"])[-1])
        return load_file(outputs_file)


def reload_in_process(folder: Path, supernet: Weights, subnet: SubnetConfig, context: TaskContext) -> PreTrainedModel:
    """Loads a folder in this process, compares its outputs, and returns the model on the supernet's device.

    It has the dtype of its files; its outputs are compared in float32.

    Raises:
        InputError: If its outputs differ by more than 1e-5.
    """
    inputs, expected = supernet_outputs(supernet, subnet, context)
    options = {"trust_remote_code": True, "use_safetensors": True, "dtype": context.dtype}
    model = getattr(transformers, context.auto_class).from_pretrained(folder, **options).eval()
    with exact_sums(model):
        check_equal(_outputs(model, inputs, context, exact=True), expected, subnet)
    return moved(model, supernet.model.device)


def padded_inputs(context: TaskContext) -> dict[str, torch.Tensor]:
    """Returns a small batch, with texts padded to different lengths."""
    length = min(24, context.recipe.task.max_length)
    inputs = context.dummy_inputs(Workload(batch_size=3, sequence_length=length))
    if "attention_mask" in inputs:
        for row, padding in enumerate((0, length // 4, length // 2)):
            inputs["attention_mask"][row, length - padding :] = 0
    return inputs


def supernet_outputs(
    supernet: Weights, subnet: SubnetConfig, context: TaskContext
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Returns a small batch, with texts padded to different lengths, and the supernet's outputs on it by name.

    They are computed on the CPU, as those of a reloaded model, because devices round differently. Where files have 16
    bits, they are those of the extracted model with its weights rounded to them, in float32.

    Raises:
        InputError: If the extracted model has other outputs before its weights are rounded.
    """
    inputs = padded_inputs(context.of(subnet))
    supernet.activate(subnet)
    device = supernet.model.device
    outputs = _outputs(supernet.to("cpu").model, inputs, context)
    if context.dtype != torch.float32 or has_halves(supernet.model):
        outputs = _exact_outputs(supernet.extract(subnet), outputs, inputs, subnet, context)
    supernet.to(device)
    return inputs, outputs


def _exact_outputs(
    extracted: PreTrainedModel,
    active: Mapping[str, torch.Tensor],
    inputs: Mapping[str, torch.Tensor],
    subnet: SubnetConfig,
    context: TaskContext,
) -> dict[str, torch.Tensor]:
    """The outputs in float32 of an extracted model with its weights rounded to 16 bits, which is done in place.

    Its outputs must be those of the active subnetwork; where weights have 16 bits already, as far as these let them.
    """
    own = _outputs(extracted, inputs, context)
    if not has_halves(extracted):
        check_equal(own, active, subnet)
    was_half = has_halves(extracted)
    with exact_sums(cast_weights(extracted, context.dtype)):
        exact = _outputs(extracted, inputs, context, exact=True)
    if was_half:
        check_equal(own, active, subnet, TOLERANCE + ROUNDINGS * largest_difference(own, exact))
    return exact


def _outputs(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], context: TaskContext, *, exact: bool = False
) -> dict[str, torch.Tensor]:
    """Outputs by name; exact: of a model within `exact_sums`, whose inputs are in float32 whatever its weights."""
    own = dict(inputs) if exact else in_own_dtype(model, inputs)
    with evaluation_mode(model):
        return scored_outputs(model(**own), context.task.outputs, inputs)


def check_equal(
    reloaded: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    subnet: SubnetConfig,
    tolerance: float = TOLERANCE,
) -> None:
    """Raises InputError if outputs differ by more than the tolerance, hold a NaN, lack one or have another shape."""
    difference = largest_difference(reloaded, expected)
    if not difference <= tolerance:
        raise InputError(
            f"the export failed: the outputs of the reloaded model and the supernet must agree within "
            f"{tolerance:.1g}, but those of {subnet} differ by {difference:.3g}."
        )

"""ONNX export of Hugging Face models with dynamic axes, checked in ONNX Runtime, and int8 quantization."""

from __future__ import annotations

import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from predictors.measurement.file_errors import file_errors_as_input_errors
from predictors.measurement.halves import in_float32, store_halves
from predictors.measurement.rounding import allowed_difference, largest_difference, leaf_outputs
from search_spaces.errors import InputError, short_error

if TYPE_CHECKING:
    import onnx_ir
    import onnxruntime
    import torch
    from transformers import PreTrainedModel

ONE_FILE_BYTES = 1_500_000_000
"""Weights up to this size are stored in the .onnx file itself; the limit of protobuf is 2 GB."""


def require(*packages: str, extra: str, what: str) -> None:
    """Checks that optional packages are installed.

    Raises:
        InputError: If one is missing; the message has the command that installs it.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise InputError(
            f"{what} needs {' and '.join(missing)}, which this Python does not have; "
            f'install it with `pip install "paretoformer[{extra}]"`.'
        )


def write_onnx(
    model: PreTrainedModel, inputs: Mapping[str, Any], file: str | Path, *, int8: bool = False, dynamic: bool = True
) -> float:
    """Writes a model as one ONNX file that accepts any batch size and sequence length.

    The file is run in ONNX Runtime on the inputs and on another batch of half the length, and must agree with PyTorch;
    where int8 products round, within what this rounding changes (see `rounding.allowed_difference`). It computes in
    float32, also with weights of 16 bits.

    Args:
        model: A Hugging Face model; its device and mode are restored.
        inputs: Inputs of the model: name -> tensor, or a cache of keys and values.
        file: Target path; a model of over 1.5 GB also gets a file ``<file>.data`` in the same folder.
        int8: Whether matrix products are in int8, with dynamically quantized activations.
        dynamic: Whether other batch sizes and lengths than those of the inputs can run; tracing takes longer.

    Returns:
        The largest difference of an output from PyTorch; for int8 and quantized layers this is the rounding error.

    Raises:
        InputError: If packages are missing, the model cannot be traced, or its outputs differ by more than allowed.
    """
    require("onnx", "onnxscript", "onnxruntime", extra="onnx", what="an ONNX file")
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    stored, model = model.dtype, in_float32(model)
    with _on_cpu(model), tempfile.TemporaryDirectory(dir=file.parent, prefix=".onnx-") as folder:
        exported = written = Path(folder) / file.name
        cases = cases_of(inputs) if dynamic else [inputs]
        large = _save(_trace(model, _at_least_two(inputs) if len(cases) > 1 else inputs, dynamic), exported)
        if int8:
            written = Path(folder) / "int8" / file.name
            written.parent.mkdir()
            quantize_onnx(exported, written)
        if stored != model.dtype:
            store_halves(written, stored, large)
        difference = _checked(model, cases, written, int8=int8)
        _move_files(written.parent, file.parent)
    return difference


def write_int8_onnx(model: PreTrainedModel, inputs: Mapping[str, Any], source: Path, file: Path) -> float:
    """Quantizes the ONNX file of a model to int8, and checks it as `write_onnx` does; returns the difference."""
    with _on_cpu(model), tempfile.TemporaryDirectory(dir=file.parent, prefix=".int8-") as folder:
        quantized = Path(folder) / file.name
        quantize_onnx(source, quantized)
        difference = _checked(model, cases_of(inputs), quantized, int8=True)
        _move_files(quantized.parent, file.parent)
    return difference


def _move_files(source: Path, target: Path) -> None:
    for file in source.iterdir():
        if file.is_file():
            file.replace(target / file.name)


def require_close(difference: float, allowed: float, what: str) -> None:
    """Raises InputError if outputs differ by more than allowed, or hold a NaN."""
    if not difference <= allowed:
        raise InputError(
            f"{what} must give the outputs of the model within {allowed:.2g}, but they differ by {difference:.3g}; "
            "nothing was written."
        )


def _checked(model: PreTrainedModel, cases: Sequence[Mapping[str, Any]], file: Path, *, int8: bool) -> float:
    difference = _difference(model, cases, file)
    what = "an int8 ONNX file" if int8 else "an ONNX file"
    require_close(difference, allowed_difference(model, cases, int8=int8), what)
    return difference


def quantize_onnx(source: str | Path, target: str | Path) -> None:
    """Quantizes an ONNX file to int8: weights of matrix products per channel, activations dynamically.

    Weights use seven bits: the file also runs on processors without VNNI, where sums of 8-bit products overflow.
    """
    require("onnx", "onnxruntime", extra="onnx", what="an int8 ONNX file")
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory(dir=Path(target).parent, prefix=".int8-") as folder:
        cleaned = Path(folder) / "model.onnx"
        with file_errors_as_input_errors(source):
            proto = onnx.load(str(source))
            if not proto.graph.node:
                raise ValueError("it holds no graph")
        weights = {tensor.name for tensor in proto.graph.initializer}
        others = [info for info in proto.graph.value_info if info.name not in weights]
        del proto.graph.value_info[:]  # transposed weights would contradict their recorded shapes
        proto.graph.value_info.extend(others)
        large = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > ONE_FILE_BYTES
        onnx.save(proto, str(cleaned), save_as_external_data=large)
        with _logging_disabled():  # a warning advises to optimize the graph first, which makes no model faster
            quantize_dynamic(
                cleaned, Path(target), per_channel=True, reduce_range=True, use_external_data_format=large
            )


def onnx_session(
    file: str | Path, threads: int = 0, providers: Sequence[Any] = ("CPUExecutionProvider",)
) -> onnxruntime.InferenceSession:
    """A session that runs an ONNX file, by default on all cores, and only logs errors.

    Raises:
        InputError: If the file cannot be read.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    with file_errors_as_input_errors(file):
        return onnxruntime.InferenceSession(str(file), options, providers=list(providers))


@contextmanager
def _logging_disabled() -> Iterator[None]:
    """Disables log messages up to warnings until exit."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


@contextmanager
def quiet_export(model: PreTrainedModel, what: str) -> Iterator[None]:
    """Silences the exporter's warnings and turns its errors into an `InputError`.

    Raises:
        InputError: If the model cannot be traced.
    """
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with _logging_disabled(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise InputError(f"`{type(model).__name__}` cannot be traced for {what} ({short_error(error)}).") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _trace(model: PreTrainedModel, inputs: Mapping[str, Any], dynamic: bool) -> onnx_ir.Model:
    from transformers.exporters import OnnxConfig, OnnxExporter

    tracing = mock.patch("torch.onnx.is_in_onnx_export", lambda: True)  # it traces before it calls torch.onnx
    with quiet_export(model, "ONNX"), tracing, _symbolic_lengths(model):
        return OnnxExporter().export(model, dict(inputs), OnnxConfig(dynamic=dynamic)).program


def _symbolic_lengths(model: PreTrainedModel) -> Any:
    """Lets the code of a model take the number of samples of a tensor as a symbol, as `RTDetrModel.forward` does.

    Python's own ``len`` returns an integer, which makes the batch size a constant of the graph.
    """
    import torch

    def length(value: Any) -> Any:
        return value.shape[0] if isinstance(value, torch.Tensor) else len(value)

    return mock.patch.object(sys.modules[type(model.base_model).__module__], "len", length, create=True)


def _save(program: onnx_ir.Model, file: Path) -> bool:
    """Writes a file; returns whether its weights stand in one of their own."""
    import onnx_ir

    weights = [value.const_value for value in program.graph.initializers.values()]
    large = sum(weight.nbytes for weight in weights if weight is not None) > ONE_FILE_BYTES
    onnx_ir.save(program, str(file), external_data=f"{file.name}.data" if large else None)
    return large


CACHES = ("past_key_values", "encoder_outputs")
"""Inputs with previous results: a graph that reads them only runs with the batch size that it was traced with."""


def _at_least_two(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs with at least two samples: tracing turns a batch size of one into a constant."""
    return _map_tensors(inputs, lambda t: t.repeat(2, *[1] * (t.ndim - 1)) if t.shape[0] == 1 else t)


def half_length(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same samples with the first half of their tokens."""
    return _map_tensors(inputs, lambda t: t[:, : -(-t.shape[1] // 2)].contiguous() if t.ndim == 2 else t)


def _other_shape(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Three samples of half the length."""
    import torch

    return _map_tensors(half_length(inputs), lambda t: torch.cat([t] * 3)[:3])


def _map_tensors(inputs: Mapping[str, Any], change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    return {name: value if isinstance(value, bool) else change(value) for name, value in inputs.items()}


def cases_of(inputs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Inputs on which a file with dynamic axes is checked: the given ones and, without a cache, another shape."""
    return [inputs] if any(name in inputs for name in CACHES) else [inputs, _other_shape(inputs)]


def _difference(model: PreTrainedModel, cases: Sequence[Mapping[str, Any]], file: Path) -> float:
    """The largest difference of an output in ONNX Runtime from PyTorch, over several inputs; NaN if one is."""
    import numpy as np

    return float(np.max([_difference_on(model, inputs, file) for inputs in cases]))


def _difference_on(model: PreTrainedModel, inputs: Mapping[str, Any], file: Path) -> float:
    import torch
    from transformers.exporters.utils import onnx_feed

    session = onnx_session(file)
    names = [port.name for port in session.get_outputs()]
    feed = onnx_feed([spec.name for spec in session.get_inputs()], inputs)
    outputs = {name: torch.from_numpy(value) for name, value in zip(names, session.run(names, feed), strict=True)}
    expected = leaf_outputs(model, inputs)
    compared = {name: tensor for name, tensor in expected.items() if name in outputs}
    if not compared:
        raise InputError(f"an ONNX file must have the outputs of its model, but {list(expected)} are not in {names}.")
    return largest_difference(outputs, compared)


@contextmanager
def _on_cpu(model: PreTrainedModel) -> Iterator[None]:
    device, training = model.device, model.training
    model.cpu().eval()
    try:
        yield
    finally:
        model.to(device).train(training)

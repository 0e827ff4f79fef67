"""ONNX files of Hugging Face models: written with dynamic axes, checked in ONNX Runtime, and their int8 versions."""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from predictors.measurement.precision import has_vnni
from search_spaces.dimensions.bits import ROUNDS_ACTIVATIONS
from search_spaces.errors import InputError

if TYPE_CHECKING:
    import onnx_ir
    import onnxruntime
    import torch
    from transformers import PreTrainedModel

TOLERANCE = 1e-4
"""The largest difference of an output in ONNX Runtime from the same in PyTorch."""

ONE_FILE_BYTES = 1_500_000_000
"""Weights up to this size stand in the .onnx file itself; protobuf ends at 2 GB."""


def require(*packages: str, extra: str, what: str) -> None:
    """Makes sure optional packages are installed.

    Raises:
        InputError: With the command that installs them.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise InputError(
            f"{what} needs {' and '.join(missing)}, which this Python does not have; "
            f'`pip install "paretoformer[{extra}]"` brings it.'
        )


def write_onnx(
    model: PreTrainedModel, inputs: Mapping[str, Any], file: str | Path, *, int8: bool = False, dynamic: bool = True
) -> float:
    """Writes a model as one ONNX file whose batch and sequence may have any size.

    The file is run in ONNX Runtime on the inputs and on another batch of half the length, and must agree with PyTorch,
    unless layers round what they are given, which runtimes do differently.

    Args:
        model: What `from_pretrained` returns; it stays where it is, in evaluation mode.
        inputs: What the model is called with: name -> tensor, or a cache of keys and values.
        file: Where to; a model of over 1.5 GB gets a second file ``<file>.data`` beside it.
        int8: Whether matrix products are in int8, with activations quantized as they come (dynamic quantization).
        dynamic: Whether other batches and lengths than those of the inputs may run; tracing takes longer.

    Returns:
        The largest difference of an output from PyTorch; of int8 and of such layers, the error of the rounding.

    Raises:
        InputError: If packages are missing, the model cannot be traced, or its outputs differ by more than 1e-4.
    """
    require("onnx", "onnxscript", "onnxruntime", extra="onnx", what="an ONNX file")
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with _on_cpu(model), tempfile.TemporaryDirectory(dir=file.parent, prefix=".onnx-") as folder:
        plain = Path(folder) / file.name
        cases = [inputs, _shorter(inputs)] if dynamic and not any(name in inputs for name in CACHES) else [inputs]
        _save(_traced(model, _several(inputs) if len(cases) > 1 else inputs, dynamic), plain)
        difference = _difference(model, cases, plain)
        require_close(model, difference, "an ONNX file")
        if int8:
            quantize_onnx(plain, file)
            return _difference(model, cases, file)
        for written in Path(folder).iterdir():
            written.replace(file.parent / written.name)
    return difference


def require_close(model: PreTrainedModel, difference: float, what: str) -> None:
    """Raises InputError if outputs differ by more than 1e-4, unless layers round what they are given."""
    rounds = any(getattr(module, "bits", "") in ROUNDS_ACTIVATIONS for module in model.modules())
    if not (rounds or difference <= TOLERANCE):
        raise InputError(
            f"{what} must give the outputs of the model within {TOLERANCE:g}, but they differ by {difference:.3g}; "
            "nothing is written."
        )


def quantize_onnx(source: str | Path, target: str | Path) -> None:
    """Makes the int8 version of an ONNX file: weights of matrix products per channel, activations as they come.

    Seven bits of the weights are used, as processors without VNNI need.
    """
    require("onnx", "onnxruntime", extra="onnx", what="an int8 ONNX file")
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory(dir=Path(target).parent, prefix=".int8-") as folder:
        cleaned = Path(folder) / "model.onnx"
        proto = onnx.load(str(source))
        weights = {tensor.name for tensor in proto.graph.initializer}
        described = [info for info in proto.graph.value_info if info.name not in weights]
        del proto.graph.value_info[:]  # transposed weights would contradict the shapes noted for them
        proto.graph.value_info.extend(described)
        large = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > ONE_FILE_BYTES
        onnx.save(proto, str(cleaned), save_as_external_data=large)
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)  # it advises to optimize the graph first, which makes none faster
        try:
            quantize_dynamic(
                cleaned, Path(target), per_channel=True, reduce_range=not has_vnni(), use_external_data_format=large
            )
        finally:
            logging.disable(disabled)


def onnx_session(
    file: str | Path, threads: int = 0, providers: Sequence[Any] = ("CPUExecutionProvider",)
) -> onnxruntime.InferenceSession:
    """A session that runs an ONNX file, by default with all cores, and logs errors only."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=list(providers))


@contextmanager
def quiet_export(model: PreTrainedModel, what: str) -> Iterator[None]:
    """Traces without the exporter's warnings; what goes wrong becomes one line.

    Raises:
        InputError: If the model cannot be traced.
    """
    from transformers.utils import logging as transformers_logging

    verbosity, disabled = transformers_logging.get_verbosity(), logging.root.manager.disable
    transformers_logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"`{type(model).__name__}` cannot be traced for {what} ({reason}).") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        logging.disable(disabled)


def _traced(model: PreTrainedModel, inputs: Mapping[str, Any], dynamic: bool) -> onnx_ir.Model:
    from transformers.exporters import OnnxConfig, OnnxExporter

    tracing = mock.patch("torch.onnx.is_in_onnx_export", lambda: True)  # it traces before it calls torch.onnx
    with quiet_export(model, "ONNX"), tracing:
        return OnnxExporter().export(model, dict(inputs), OnnxConfig(dynamic=dynamic)).program


def _save(program: onnx_ir.Model, file: Path) -> None:
    import onnx_ir

    weights = [value.const_value for value in program.graph.initializers.values()]
    large = sum(weight.nbytes for weight in weights if weight is not None) > ONE_FILE_BYTES
    onnx_ir.save(program, str(file), external_data=f"{file.name}.data" if large else None)


CACHES = ("past_key_values", "encoder_outputs")
"""Inputs that hold what was computed before: a graph that reads them keeps the batch that it was traced with."""


def _several(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs with at least two samples: tracing takes a batch of one for a constant."""
    return _tensors(inputs, lambda t: t.repeat(2, *[1] * (t.ndim - 1)) if t.shape[0] == 1 else t)


def halved(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same samples with half of their tokens."""
    return _tensors(inputs, lambda t: t[:, : -(-t.shape[1] // 2)].contiguous() if t.ndim == 2 else t)


def _shorter(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Three samples of half the tokens."""
    import torch

    return _tensors(halved(inputs), lambda t: torch.cat([t] * 3)[:3])


def _tensors(inputs: Mapping[str, Any], change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    return {name: value if isinstance(value, bool) else change(value) for name, value in inputs.items()}


def _difference(model: PreTrainedModel, cases: Sequence[Mapping[str, Any]], file: Path) -> float:
    """The largest difference of an output in ONNX Runtime from PyTorch, over several inputs."""
    return max(_difference_on(model, inputs, file) for inputs in cases)


def _difference_on(model: PreTrainedModel, inputs: Mapping[str, Any], file: Path) -> float:
    import copy

    import torch
    from transformers.exporters.utils import get_leaf_tensors, onnx_feed

    session = onnx_session(file)
    names = [output.name for output in session.get_outputs()]
    fed = onnx_feed([spec.name for spec in session.get_inputs()], inputs)
    found = dict(zip(names, session.run(names, fed), strict=True))
    with torch.inference_mode():
        expected = get_leaf_tensors(dict(model(**copy.deepcopy(dict(inputs)))))
    compared = [name for name in expected if name in found and expected[name].is_floating_point()]
    if not compared:
        raise InputError(f"an ONNX file must have the outputs of its model, but {list(expected)} are not in {names}.")
    return max(float((torch.from_numpy(found[n]) - expected[n]).abs().max()) for n in compared)


@contextmanager
def _on_cpu(model: PreTrainedModel) -> Iterator[None]:
    device, training = model.device, model.training
    model.cpu().eval()
    try:
        yield
    finally:
        model.to(device).train(training)

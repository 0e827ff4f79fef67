"""PyTorch, eagerly; its file is a `torch.export` program."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predictors.measurement.file_errors import file_errors_as_input_errors
from predictors.measurement.halves import in_own_dtype
from predictors.measurement.onnx_export import quiet_export
from predictors.measurement.phases import on_device
from predictors.measurement.runtime import Call, Format, ForwardFunction, Inputs, Runtime
from search_spaces.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from predictors.measurement.workload import Workload


class _Torch(Runtime):
    def prepare(self, model: PreTrainedModel, inputs: Inputs, workload: Workload) -> Call:
        """Runs the model itself, or a copy with int8 layers."""
        model, moved = on_device(model, inputs, workload)
        return forward_call(_int8(model) if workload.dtype == "int8" else model, moved)


def forward_call(model: Callable[..., Any], inputs: dict[str, Any]) -> Call:
    """Runs a PyTorch model; the cache is as before after each call.

    A call leaves the tensors of the cache as they are and makes longer ones. They cannot be cropped: a full sliding
    window has lost its first token.
    """
    cache = inputs.get("past_key_values")
    if cache is None:
        return partial(model, **inputs)
    layers = getattr(cache, "self_attention_cache", cache).layers
    before = [dict(vars(layer)) for layer in layers]

    def step() -> object:
        outputs = model(**inputs)
        for layer, state in zip(layers, before, strict=True):
            vars(layer).update(state)
        return outputs

    return step


def _int8(model: PreTrainedModel) -> Callable[..., Any]:
    """A copy whose linear layers have int8 weights and quantize their inputs dynamically.

    torchao, which PyTorch recommends in place of `torch.ao`, takes 3.7 times as long (experiments/bench/README.md).
    """
    import warnings

    import torch
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    if not any("quantized" in type(module).__module__ for module in quantized.modules()):
        raise InputError(
            f"`workload.dtype=int8` in torch quantizes linear layers, but `{type(model).__name__}` has none; set "
            "`workload.runtime=onnxruntime`."
        )
    return quantized


def _write(model: PreTrainedModel, inputs: Inputs, file: Path) -> None:
    """Writes a `torch.export` program with a dynamic batch size and sequence length."""
    import torch
    from transformers.exporters import DynamoConfig, DynamoExporter

    with quiet_export(model, "torch.export"):
        exported = DynamoExporter().export(model, in_own_dtype(model, inputs), DynamoConfig(dynamic=True))
        torch.export.save(getattr(exported, "program", exported), file)


def _load(file: Path) -> ForwardFunction:
    import torch

    with file_errors_as_input_errors(file):
        program = torch.export.load(file)
    module, expected = program.module(), program.graph_signature.user_inputs
    dtypes = {node.name: node.meta["val"].dtype for node in program.graph.nodes if node.name in expected}

    def run(inputs: Mapping[str, torch.Tensor]) -> Any:
        return module(**{name: value.to(dtypes[name]) for name, value in inputs.items() if name in dtypes})

    return run


PROGRAM = Format(
    name="program",
    file="program/model.pt2",
    write=_write,
    load=_load,
    workload={"runtime": "torch", "device": "cpu"},
    keeps_dtype=True,
)

TORCH = _Torch(
    name="torch",
    packages=("torch", "transformers"),
    dtypes=("float32", "bfloat16", "float16", "int8"),
    layer_dtypes=("bfloat16", "int8"),
    formats=(PROGRAM,),
)

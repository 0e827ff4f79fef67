"""ExecuTorch's XNNPACK kernels: programs of exports. They are not a workload; latency is measured in exports only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predictors.measurement.executorch_int8 import with_integer_layers
from predictors.measurement.file_errors import file_errors_as_input_errors
from predictors.measurement.halves import in_float32
from predictors.measurement.onnx_export import half_length, quiet_export, require, require_close
from predictors.measurement.rounding import allowed_difference, largest_difference, leaf_outputs
from predictors.measurement.runtime import Format, ForwardFunction, Inputs
from search_spaces.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def _write(model: PreTrainedModel, inputs: Inputs, file: Path, *, int8: bool = False) -> None:
    """Writes a program, and a manifest with the names of its inputs and outputs.

    Its memory is planned for the batch size and the length of the inputs.

    Args:
        model: A Hugging Face model.
        inputs: What it is traced with: the largest batch, and the longest texts, that the program takes.
        file: Target path, in a folder of its own.
        int8: Whether all linear layers multiply integers, and not only the ``int8`` ones of the model.
    """
    require("executorch", extra="executorch", what="an ExecuTorch program")
    import numpy as np
    import torch
    from torch.export import Dim
    from transformers.exporters import ExecutorchConfig, ExecutorchExporter

    model = in_float32(model)
    tensors = {name: tensor for name, tensor in inputs.items() if not isinstance(tensor, bool)}
    sizes = {name: tensor.shape[: 2 if tensor.ndim == 2 else 1] for name, tensor in tensors.items()}  # batch, length
    bounds = {
        name: {axis: Dim.AUTO(min=1, max=size) for axis, size in enumerate(shape) if size > 1}
        for name, shape in sizes.items()
    }
    with quiet_export(model, "ExecuTorch"), torch.inference_mode():
        with _eager_attention(lowered := with_integer_layers(model, all_layers=int8)):
            config = ExecutorchConfig(dynamic_shapes=bounds)
            exported = ExecutorchExporter().export(lowered, dict(inputs), config)
        cases = (inputs, half_length(inputs))
        difference = float(np.max([_max_difference(model, exported, case) for case in cases]))
        allowed = allowed_difference(model, cases, int8=int8)
    require_close(difference, allowed, "an ExecuTorch program")
    exported.config = exported.generation_config = None  # the parent folder holds them
    exported.save_pretrained(file.parent)


def _max_difference(model: PreTrainedModel, program: Any, inputs: Inputs) -> float:
    found, expected = program(**inputs), leaf_outputs(model, inputs)
    return largest_difference(found, {name: tensor for name, tensor in expected.items() if name in found})


@contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Uses eager attention: XNNPACK has its operators, but not that of SDPA for queries without a visible key."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)


def _load(file: Path) -> ForwardFunction:
    import torch
    from executorch.extension.pybindings import portable_lib
    from transformers.exporters import ExportedModel

    if portable_lib._threadpool_get_thread_count() != torch.get_num_threads():
        portable_lib._unsafe_reset_threadpool(torch.get_num_threads())  # programs loaded before stop working
    with file_errors_as_input_errors(file):
        program = ExportedModel.from_pretrained(file.parent)
        runner = program.runners["model"]
    shapes = [runner.method.metadata.input_tensor_meta(i).sizes() for i in range(len(runner.metadata.kwargs))]
    largest = dict(zip(runner.metadata.kwargs, shapes, strict=True))
    texts = {name: shape for name, shape in largest.items() if len(shape) == 2}

    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name, (_, tokens) in texts.items():
            if inputs[name].shape[1] > tokens:
                raise InputError(
                    f"`{file}` takes at most {tokens} tokens, but `{name}` has {inputs[name].shape[1]}; set "
                    "`max_length` in subnet.json and run `nas convert` again."
                )
        batches = zip(*(inputs[name].split(shape[0]) for name, shape in largest.items()), strict=True)
        outputs = [program(**dict(zip(largest, batch, strict=True))) for batch in batches]
        return {name: torch.cat([outputs[name] for outputs in outputs]) for name in outputs[0]}

    return run


_FLOAT = Format(
    name="executorch",
    file="executorch/model.pte",
    write=_write,
    load=_load,
    workload={"runtime": "torch", "device": "cpu"},
    extra="executorch",
    is_bounded=True,
    libraries=("executorch.extension.pybindings.portable_lib", "transformers.exporters.exporter_executorch"),
)

FORMATS = (
    _FLOAT,
    replace(
        _FLOAT, name="executorch-int8", file="executorch-int8/model.pte", write=partial(_write, int8=True), rounds=True
    ),
)
"""Programs in float32 but for the model's own ``int8`` layers, and with integers in all linear layers."""

"""Models in 16 bits: in files of runtimes that compute in float32 their weights are cast when the file is loaded."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

LEAST_VALUES = 64
"""Values of a tensor from which storing it in 16 bits is worth a node of the graph."""


def has_halves(model: nn.Module) -> bool:
    """Whether the weights of a model have 16 bits; what another runtime executes has no dtype."""
    dtype = getattr(model, "dtype", None)
    return dtype is not None and dtype.itemsize == 2


def in_float32(model: Any) -> Any:
    """The model itself, or a copy of one in 16 bits that computes in float32 with the same weights."""
    return copy.deepcopy(model).float() if has_halves(model) else model


def in_own_dtype(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a model in 16 bits, the floating-point ones in its dtype; those of any other as they are."""
    if not has_halves(model):
        return dict(inputs)
    floats = {name: value for name, value in inputs.items() if getattr(value, "is_floating_point", bool)()}
    return {**inputs, **{name: value.to(model.dtype) for name, value in floats.items()}}


def store_halves(file: Path, dtype: torch.dtype, large: bool) -> None:
    """Stores the float32 tensors of an ONNX file in 16 bits, where that loses nothing, with a cast after each.

    ONNX Runtime casts them once, when it loads the file.

    Args:
        file: Changed in place.
        dtype: ``torch.float16`` or ``torch.bfloat16``.
        large: Whether the weights stand in a file of their own.
    """
    import onnx

    proto = onnx.load(str(file))
    kind = getattr(onnx.TensorProto, str(dtype).removeprefix("torch.").upper())
    casts = []
    for tensor in proto.graph.initializer:
        half = _half(tensor, kind)
        if half is not None:
            casts.append(onnx.helper.make_node("Cast", [half.name], [tensor.name], to=onnx.TensorProto.FLOAT))
            tensor.CopyFrom(half)
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, str(file), save_as_external_data=large, location=f"{file.name}.data")


def _half(tensor: onnx.TensorProto, kind: int) -> onnx.TensorProto | None:
    """The same values in 16 bits under another name; None where they do not fit, or where the tensor is small."""
    import onnx

    if tensor.data_type != onnx.TensorProto.FLOAT:
        return None
    values = onnx.numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        halves = values.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    if values.size < LEAST_VALUES or not np.array_equal(halves.astype(np.float32), values):
        return None
    return onnx.helper.make_tensor(f"{tensor.name}_half", kind, values.shape, halves.tobytes(), raw=True)

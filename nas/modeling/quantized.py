"""Quantized linear layers: how weights are rounded and stored, and how they are multiplied.

Quantization is uniform and symmetric with one scale per output channel (Krishnamoorthi 2018, arXiv 1806.08342). In
four bits it is affine, with a scale and an offset for a group of inputs (Dettmers & Zettlemoyer 2023, arXiv
2212.09720). Like `modeling_nas`, this file is copied into exports; it needs only torch.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

MAX_INTEGER = {"int8": 63, "int8-weight": 127}
"""Largest integer of a quantized weight. Where activations are quantized too, weights take seven of the eight bits, so
that sums of two products fit in the 16 bits in which processors without VNNI add them (255 * 63 * 2 < 2 ** 15)."""

GROUP = 32
"""Inputs that share a scale and an offset in four bits."""

EARLIER_GROUP = 64
"""The same in files of earlier versions, which have no offsets; where scales have one column, all inputs share one."""

REFITS = 4
"""How often scales and offsets are refitted; more hardly lowers the error."""

ACTIVATION_STEPS = 255
"""Largest integer of ``int8`` activations. They take all bits: one range holds all channels of all tokens, and seven
bits of it cost more quality than seven of a channel's weights."""


def quantize(weight: Tensor, bits: str) -> dict[str, Tensor]:
    """Quantizes a weight (outputs, inputs) to the tensors that are stored.

    ``int8`` and ``int8-weight`` store 8-bit integers. ``int4-weight`` packs two integers into a byte; if the number of
    inputs is odd, the last byte of a row holds one integer and a zero.

    Returns:
        ``qweight`` and, for integers, ``scales``: (outputs, 1) float32, or (outputs, groups) bfloat16 with ``offsets``
        of the same shape.
    """
    if bits == "bfloat16":
        return {"qweight": weight.to(torch.bfloat16).contiguous()}
    weight = weight.float()
    if bits == "int4-weight":
        return _quantize_groups(weight)
    scales = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / MAX_INTEGER[bits]
    int_weight = (weight / scales).round().to(torch.int8).contiguous()  # as a file holds it: layouts round differently
    return {"qweight": int_weight, "scales": scales}


def _quantize_groups(weight: Tensor) -> dict[str, Tensor]:
    """Quantizes groups of inputs to -8 ... 7 times a scale plus an offset."""
    scales, offsets = group_scales(weight)
    integers = _rounded(in_groups(weight, GROUP), scales[..., None], offsets[..., None])
    return stored_groups(integers.flatten(1)[:, : weight.shape[1]], scales, offsets)


def group_scales(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns scales and offsets (outputs, groups) of a weight in float32, with the values that a file holds.

    They span the range of the group first. Then rounding and the regression of the group on its integers take turns,
    each of which lowers the squared error (Lloyd 1982, doi 10.1109/TIT.1982.1056489).
    """
    groups = in_groups(weight, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scales = _as_stored((high - low) / 15)
    offsets = ((low + high + scales) / 2).bfloat16().float()
    for _ in range(REFITS):
        scales, offsets = _regression(_rounded(groups, scales, offsets), groups)
    return scales[..., 0], offsets[..., 0]


def stored_groups(integers: Tensor, scales: Tensor, offsets: Tensor) -> dict[str, Tensor]:
    """Returns the tensors that are stored for integers (outputs, inputs) from -8 to 7."""
    stored = {"scales": scales.bfloat16(), "offsets": offsets.bfloat16()}
    return {"qweight": pack_pairs(integers.to(torch.int8)), **stored}


def _rounded(groups: Tensor, scales: Tensor, offsets: Tensor) -> Tensor:
    """Returns the integers of groups."""
    return ((groups - offsets) / scales).round().clamp(-8, 7)


def _regression(integers: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the scales and offsets, as they are stored, with which integers are nearest to the groups."""
    mean, middle = groups.mean(-1, keepdim=True), integers.mean(-1, keepdim=True)
    spread = integers - middle
    variance = spread.square().sum(-1, keepdim=True).clamp(min=1.0)  # it is 0 where all integers are equal
    scales = _as_stored((spread * (groups - mean)).sum(-1, keepdim=True) / variance)
    return scales, (mean - scales * middle).bfloat16().float()


def _as_stored(scales: Tensor) -> Tensor:
    """Returns positive scales rounded as in files."""
    return scales.clamp(min=torch.finfo(torch.float32).tiny).bfloat16().float()


def dequantize(qweight: Tensor, scales: Tensor, inputs: int, offsets: Tensor | None = None) -> Tensor:
    """Returns the weight (outputs, inputs) of stored integers; in files of earlier versions groups have no offsets."""
    integers = unpack(qweight, inputs)
    if offsets is not None:
        groups = in_groups(integers, GROUP) * scales[..., None].float() + offsets[..., None].float()
    elif scales.shape[1] > 1:
        groups = in_groups(integers, EARLIER_GROUP) * scales[..., None]
    else:
        return integers * scales
    return groups.flatten(1)[:, :inputs]


def in_groups(rows: Tensor, group: int) -> Tensor:
    """Splits rows (.., channels) into (.., groups, group), with zeros at the end of the last one."""
    missing = -rows.shape[-1] % group
    return (pad(rows, (0, missing)) if missing else rows).unflatten(-1, (-1, group))


def pack_pairs(integers: Tensor) -> Tensor:
    """Packs integers (.., n) from -8 to 7 into bytes (.., n / 2), the first of a pair in the lower half."""
    pairs = pad(integers + 8, (0, integers.shape[-1] % 2), value=8).to(torch.uint8).unflatten(-1, (-1, 2))
    low, high = pairs.unbind(-1)
    return low | (high << 4)


def unpack(qweight: Tensor, inputs: int) -> Tensor:
    """Returns the integers (.., inputs) in a ``qweight``."""
    if qweight.dtype != torch.uint8:
        return qweight
    pairs = qweight.float()  # not every runtime has shifts of bytes
    high = (pairs / 16).floor()
    return torch.stack([pairs - 16 * high, high], -1).flatten(-2)[..., :inputs] - 8


def fake_quant_linear(x: Tensor, weight: Tensor, bias: Tensor | None, bits: str) -> Tensor:
    """Computes the output of a `QuantizedLinear` from an unquantized weight.

    With gradients enabled, it simulates the rounding in float32 and gradients ignore it (straight-through estimator,
    Bengio et al. 2013, arXiv 1308.3432).
    """
    if not torch.is_grad_enabled() or bits == "bfloat16":
        return quantized_linear(x, bits=bits, bias=bias, **quantize(weight, bits))
    with torch.no_grad():
        stored = quantize(weight, bits)
        change = dequantize(inputs=weight.shape[1], **stored).to(weight.dtype) - weight
    return linear(_straight_through(x) if bits == "int8" else x, weight + change, bias)


def quantized_linear(
    x: Tensor,
    qweight: Tensor,
    bias: Tensor | None,
    bits: str,
    scales: Tensor | None = None,
    offsets: Tensor | None = None,
    packed: Any = None,
) -> Tensor:
    """Applies a linear layer (.., inputs) -> (.., outputs) with a quantized weight.

    With gradients enabled, rounded inputs are simulated, and their gradients ignore the rounding, as in
    `fake_quant_linear`.

    Args:
        x: Inputs.
        qweight: Stored weight.
        bias: (outputs,) or None.
        bits: Dtype of the stored weight.
        scales: Scales of an integer weight.
        offsets: Of its groups.
        packed: Result of `prepack`, if it was computed before.
    """
    if scales is None:
        dtype = x.dtype if torch.onnx.is_in_onnx_export() else torch.bfloat16  # ONNX Runtime has no such products
        return linear(x.to(dtype), qweight.to(dtype), None if bias is None else bias.to(dtype)).to(x.dtype)
    if bits != "int8":
        if torch.onnx.is_in_onnx_export() and offsets is not None and x.shape[-1] % GROUP == 0:
            return _onnx_four_bits(x, qweight, scales, offsets, bias)
        return linear(x, dequantize(qweight, scales, x.shape[-1], offsets).to(x.dtype), bias)
    int_weight = unpack(qweight, x.shape[-1])
    if torch.onnx.is_in_onnx_export():
        return _onnx_linear(x, int_weight, scales, bias)
    if has_int8_kernels(x):
        packed = prepack(int_weight, scales, bias) if packed is None else packed
        with suppress(RuntimeError):  # of inputs with a NaN, whose outputs are computed below
            return torch.ops.quantized.linear_dynamic(x, packed, False)
    return linear(_straight_through(x), (int_weight * scales).to(x.dtype), bias)


def _straight_through(x: Tensor) -> Tensor:
    """Returns rounded activations whose gradient is that of the activations."""
    if not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return _fake_quantize(x)
    with torch.no_grad():
        noise = _fake_quantize(x) - x
    return x + noise


def has_int8_kernels(x: Tensor) -> bool:
    """Whether PyTorch has int8 kernels for this input; otherwise ``int8`` is computed in floating point.

    They have no gradients.
    """
    if torch.is_grad_enabled():
        return False
    engine = torch.backends.quantized.engine in ("x86", "fbgemm", "onednn")
    return engine and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


def prepack(int_weight: Tensor, scales: Tensor, bias: Tensor | None) -> Any:
    """Packs an integer weight for PyTorch's int8 kernels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zeros = torch.zeros(len(scales), dtype=torch.long)
        weight = torch._make_per_channel_quantized_tensor(int_weight.contiguous(), scales.flatten().double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(weight, None if bias is None else bias.float())


def _fake_quantize(x: Tensor) -> Tensor:
    """Quantizes and dequantizes activations with one range for the tensor."""
    step, zero = _activation_range(x)
    return (((x.float() / step).round() + zero).clamp(0, ACTIVATION_STEPS) - zero).mul(step).to(x.dtype)


def _activation_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the step and the integer of zero (both scalars) of a range from the smallest to the largest value."""
    low, high = (bound.float() for bound in (x.min().clamp(max=0), x.max().clamp(min=0)))
    step = ((high - low) / ACTIVATION_STEPS).clamp(min=torch.finfo(torch.float32).eps)
    return step, (-low / step).round()


def _onnx_linear(x: Tensor, int_weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Emits the ONNX operators of an int8 layer, with activations as in `_fake_quantize`; ONNX Runtime fuses them."""
    rounded, step, zero = torch.onnx.ops.symbolic_multi_out(
        "DynamicQuantizeLinear",
        (x,),
        dtypes=(torch.uint8, torch.float32, torch.uint8),
        shapes=(x.shape, (), ()),
        version=11,
    )
    shape = (*x.shape[:-1], len(int_weight))
    operands = rounded, int_weight.T, zero
    sums = torch.onnx.ops.symbolic("MatMulInteger", operands, dtype=torch.int32, shape=shape, version=10)
    out = sums.to(torch.float32) * (step * scales.flatten())
    return out if bias is None else out + bias


def _onnx_four_bits(x: Tensor, qweight: Tensor, scales: Tensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    """Emits ONNX Runtime's product with a weight in groups of four bits: it is never restored as a whole.

    An offset is the same for all inputs of a group, so that their sum is multiplied with it.
    """
    outputs, groups = scales.shape
    blocks = qweight.reshape(outputs, groups, GROUP // 2)
    sizes: Any = {"K": x.shape[-1], "N": outputs, "bits": 4, "block_size": GROUP}
    result: Any = {"dtype": x.dtype, "shape": (*x.shape[:-1], outputs), "version": 1}
    operands = x, blocks, scales.flatten().to(x.dtype)
    out = torch.onnx.ops.symbolic("com.microsoft::MatMulNBits", operands, sizes, **result)
    return out + linear(in_groups(x, GROUP).sum(-1), offsets.to(x.dtype), bias)


class Stored(nn.Module):
    """Base class of modules whose weight is stored as other tensors: buffers that keep their dtype.

    ``.half()`` and ``.to(dtype)`` change the dtype of the outputs, but not the stored tensors: small scales would
    become zero.
    """

    weight: Tensor
    """An empty weight with the dtype and device of the module, which stock code reads."""

    @property
    def stored(self) -> dict[str, Tensor]:
        """The tensors that are stored: ``qweight`` and, for integers, ``scales`` and perhaps ``offsets``."""
        return {name: tensor for name, tensor in self.named_buffers() if name != "weight"}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Stored":
        """Moves the module; stored tensors keep their dtype."""
        stored = self.stored
        super()._apply(fn, recurse)
        for name, before in stored.items():
            moved = getattr(self, name)
            if moved.dtype != before.dtype:
                setattr(self, name, before.to(moved.device))
        return self


class QuantizedLinear(Stored):
    """Replaces a linear layer by one with a quantized weight; see `quantize`.

    Only its bias can be trained; gradients pass to the layers before it.
    """

    qweight: Tensor
    scales: Tensor

    def __init__(self, original: Any, inputs: int, outputs: int, bits: str) -> None:
        super().__init__()
        device = {"device": original.weight.device}
        bits, group, offset = [*bits.split(":"), "", ""][:3]
        self.bits, self.in_features, self.out_features = bits, inputs, outputs
        columns, dtype = {
            "bfloat16": (inputs, torch.bfloat16),
            "int4-weight": ((inputs + 1) // 2, torch.uint8),
        }.get(bits, (inputs, torch.int8))
        self.register_buffer("qweight", torch.zeros(outputs, columns, dtype=dtype, **device))
        if bits != "bfloat16":
            shape, dtype = (outputs, -(-inputs // int(group)) if group else 1), torch.float32
            if offset:
                dtype = torch.bfloat16
                self.register_buffer("offsets", torch.zeros(shape, dtype=dtype, **device))
            self.register_buffer("scales", torch.ones(shape, dtype=dtype, **device))
        self.bias = (
            None if original.bias is None else nn.Parameter(torch.zeros(outputs, dtype=original.bias.dtype, **device))
        )
        self.register_buffer("weight", torch.empty(0, dtype=original.weight.dtype, **device), persistent=False)
        self._prepack_cache: tuple[Any, Any] = (None, None)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Applies the layer."""
        packed = self._prepacked(hidden_states) if self.bits == "int8" and has_int8_kernels(hidden_states) else None
        return quantized_linear(hidden_states, bias=self.bias, bits=self.bits, packed=packed, **self.stored)

    def _prepacked(self, x: Tensor) -> Any:
        """Returns the result of `prepack`, cached until the tensors change."""
        tensors = [self.qweight, self.scales] + ([] if self.bias is None else [self.bias])
        fingerprint = [(tensor.data_ptr(), None if tensor.is_inference() else tensor._version) for tensor in tensors]
        if self._prepack_cache[0] != fingerprint:
            self._prepack_cache = fingerprint, prepack(self.qweight, self.scales, self.bias)
        return self._prepack_cache[1]

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the packed weight, which can be neither copied nor pickled."""
        return {**super().__getstate__(), "_prepack_cache": (None, None)}

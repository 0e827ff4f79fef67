"""Linear layers in fewer bits: how their weights are rounded and stored, and what then multiplies them.

Weights are rounded to the nearest of evenly spaced values, symmetric around 0 and with one step an output channel
(Krishnamoorthi 2018, arXiv 1806.08342). Like the modelling file, this file travels with exports and needs torch only.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

MAX_INTEGER = {"int8": 127, "int8-weight": 127, "int4-weight": 7}
"""The largest integer that a weight is rounded to."""

ACTIVATION_STEPS = 127
"""Steps of activations in ``int8``: seven bits, so that no processor overflows when it adds products in pairs."""


def quantize(weight: Tensor, bits: str) -> dict[str, Tensor]:
    """What is stored of a weight (outputs, inputs).

    ``bfloat16``: its numbers. ``int8`` and ``int8-weight``: whole numbers of 8 bits. ``int4-weight``: two numbers a
    byte, the second of a row's last byte 0 where the inputs are odd.

    Returns:
        ``qweight``, and of whole numbers ``scales`` (outputs, 1) float32.
    """
    if bits == "bfloat16":
        return {"qweight": weight.to(torch.bfloat16).contiguous()}
    weight = weight.float()
    scales = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / MAX_INTEGER[bits]
    int_weight = (weight / scales).round().to(torch.int8)
    if bits == "int4-weight":
        low, high = (
            pad(int_weight + 8, (0, int_weight.shape[1] % 2), value=8).to(torch.uint8).unflatten(1, (-1, 2)).unbind(-1)
        )
        int_weight = low | (high << 4)
    return {"qweight": int_weight, "scales": scales}


def unpack(qweight: Tensor, inputs: int) -> Tensor:
    """The whole numbers (outputs, inputs) that a ``qweight`` holds."""
    if qweight.dtype != torch.uint8:
        return qweight
    pairs = qweight.float()  # not every runtime shifts bytes
    high = (pairs / 16).floor()
    return torch.stack([pairs - 16 * high, high], -1).flatten(1)[:, :inputs] - 8


def fake_quant_linear(x: Tensor, weight: Tensor, bias: Tensor | None, bits: str) -> Tensor:
    """What a `QuantizedLinear` of these weights computes.

    While gradients are asked for, rounding is left out of them (straight-through, Bengio et al. 2013, arXiv 1308.3432)
    and its effect is computed in float32.
    """
    if not torch.is_grad_enabled() or bits == "bfloat16":
        return quantized_linear(x, bits=bits, bias=bias, **quantize(weight, bits))
    with torch.no_grad():
        stored = quantize(weight, bits)
        change = (unpack(stored["qweight"], weight.shape[1]) * stored["scales"]).to(weight.dtype) - weight
        noise = _fake_quantize(x) - x if bits == "int8" else torch.zeros((), dtype=x.dtype, device=x.device)
    return linear(x + noise, weight + change, bias)


def quantized_linear(
    x: Tensor, qweight: Tensor, bias: Tensor | None, bits: str, scales: Tensor | None = None, packed: Any = None
) -> Tensor:
    """A linear layer (.., inputs) -> (.., outputs) of what `quantize` stores.

    Args:
        x: Its inputs.
        qweight: The numbers of its weight.
        bias: (outputs,) or None.
        bits: What they mean.
        scales: Steps of whole numbers.
        packed: What `prepack` makes of them, where it was made before.
    """
    if scales is None:
        dtype = x.dtype if torch.onnx.is_in_onnx_export() else torch.bfloat16  # ONNX Runtime has no such products
        return linear(x.to(dtype), qweight.to(dtype), None if bias is None else bias.to(dtype)).to(x.dtype)
    int_weight = unpack(qweight, x.shape[-1])
    if bits != "int8":
        return linear(x, (int_weight * scales).to(x.dtype), bias)
    if torch.onnx.is_in_onnx_export():
        return _onnx_linear(x, int_weight, scales, bias)
    if has_int8_kernels(x):
        packed = prepack(int_weight, scales, bias) if packed is None else packed
        return torch.ops.quantized.linear_dynamic(x, packed, True)
    return linear(_fake_quantize(x), (int_weight * scales).to(x.dtype), bias)


def has_int8_kernels(x: Tensor) -> bool:
    """Whether PyTorch multiplies whole numbers here; elsewhere ``int8`` is computed in floating point."""
    engine = torch.backends.quantized.engine in ("x86", "fbgemm", "onednn")
    return engine and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


def prepack(int_weight: Tensor, scales: Tensor, bias: Tensor | None) -> Any:
    """A weight as PyTorch's products of whole numbers read it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zeros = torch.zeros(len(scales), dtype=torch.long)
        weight = torch._make_per_channel_quantized_tensor(int_weight.contiguous(), scales.flatten().double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(weight, None if bias is None else bias.float())


def _fake_quantize(x: Tensor) -> Tensor:
    """Activations rounded as they come: evenly between the smallest and the largest of all, 0 among the values."""
    low, high = (bound.float() for bound in (x.amin().clamp(max=0), x.amax().clamp(min=0)))
    step = ((high - low) / ACTIVATION_STEPS).clamp(min=torch.finfo(torch.float32).eps)
    zero = (-low / step).round()
    return (((x.float() / step).round() + zero).clamp(0, ACTIVATION_STEPS) - zero).mul(step).to(x.dtype)


def _onnx_linear(x: Tensor, int_weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """The operators of ONNX for it, which ONNX Runtime fuses; activations have eight bits there."""
    outputs: Any = {"dtypes": (torch.uint8, torch.float32, torch.uint8), "version": 11}
    shapes: Any = (x.shape, (), ())
    quantized_x, step, zero = torch.onnx.ops.symbolic_multi_out(
        "DynamicQuantizeLinear", (x,), shapes=shapes, **outputs
    )
    shape = (*x.shape[:-1], len(int_weight))
    operands = quantized_x, int_weight.T, zero
    sums = torch.onnx.ops.symbolic("MatMulInteger", operands, dtype=torch.int32, shape=shape, version=10)
    out = sums.to(torch.float32) * (step * scales.flatten())
    return out if bias is None else out + bias


class QuantizedLinear(nn.Module):
    """Takes the place of a linear layer whose weight is stored in fewer bits; see `quantize`.

    Only its bias can be trained.
    """

    qweight: Tensor
    scales: Tensor

    def __init__(self, original: Any, inputs: int, outputs: int, bits: str) -> None:
        super().__init__()
        device = {"device": original.weight.device}
        self.bits, self.in_features, self.out_features = bits, inputs, outputs
        columns, dtype = {
            "bfloat16": (inputs, torch.bfloat16),
            "int4-weight": ((inputs + 1) // 2, torch.uint8),
        }.get(bits, (inputs, torch.int8))
        self.register_buffer("qweight", torch.zeros(outputs, columns, dtype=dtype, **device))
        if bits != "bfloat16":
            self.register_buffer("scales", torch.ones(outputs, 1, dtype=torch.float32, **device))
        self.bias = (
            None if original.bias is None else nn.Parameter(torch.zeros(outputs, dtype=original.bias.dtype, **device))
        )
        self._prepack_cache: tuple[Any, Any] = (None, None)

    @property
    def weight(self) -> Tensor:
        """What stock code asks for the type of its numbers."""
        dtype = torch.float32 if self.bias is None else self.bias.dtype
        return torch.empty(0, dtype=dtype, device=self.qweight.device)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The product."""
        stored = dict(self.named_buffers())
        packed = self._prepacked(hidden_states) if self.bits == "int8" and has_int8_kernels(hidden_states) else None
        return quantized_linear(hidden_states, bias=self.bias, bits=self.bits, packed=packed, **stored)

    def _prepacked(self, x: Tensor) -> Any:
        """What `prepack` makes, kept until its tensors are others."""
        tensors = [self.qweight, self.scales] + ([] if self.bias is None else [self.bias])
        fingerprint = [(tensor.data_ptr(), None if tensor.is_inference() else tensor._version) for tensor in tensors]
        if self._prepack_cache[0] != fingerprint:
            self._prepack_cache = fingerprint, prepack(self.qweight, self.scales, self.bias)
        return self._prepack_cache[1]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is packed, which cannot be copied or sent."""
        return {**super().__getstate__(), "_prepack_cache": (None, None)}

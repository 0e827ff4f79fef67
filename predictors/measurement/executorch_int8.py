"""Linear layers with 8-bit integer weights in the form that ExecuTorch's XNNPACK kernels multiply, by torchao."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

ROUNDS = "int8"
"""Layers in these bits multiply integers: weights in 8 bits, activations rounded when they are multiplied."""


def with_integer_layers(model: PreTrainedModel, *, all_layers: bool) -> PreTrainedModel:
    """Returns a copy whose layers have integer weights, or the model itself where none has.

    Weights have a scale for each output channel. Activations are rounded to 8 bits at run time, in a range of
    each token:
    https://docs.pytorch.org/executorch/stable/backends/xnnpack/xnnpack-quantization.html.

    Args:
        model: In float32; integers of its ``int8`` layers stay as they are.
        all_layers: Whether the other linear layers get integers too. Tables of embeddings stay as they are.
    """
    if not all_layers and not any(_is_rounded(module) for module in model.modules()):
        return model
    changed = copy.deepcopy(model)
    for path, module in list(changed.named_modules()):
        if _is_rounded(module):
            changed.set_submodule(path, _stored_linear(module))
        elif all_layers and type(module).__name__ == "Conv1D":  # GPT-2's linear layer
            changed.set_submodule(path, _transposed(module))
    if all_layers:
        from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_

        quantize_(changed, Int8DynamicActivationIntxWeightConfig(**_channels()))
    return changed


def _is_rounded(module: nn.Module) -> bool:
    return getattr(module, "bits", "") == ROUNDS


def _channels() -> dict[str, Any]:
    """Eight bits, with a scale for each output channel."""
    import torch
    from torchao.quantization.granularity import PerAxis

    return {"weight_dtype": torch.int8, "weight_granularity": PerAxis(0)}


def _stored_linear(module: Any) -> nn.Linear:
    """A linear layer with the stored integers (outputs, inputs) and scales (outputs, 1) of an ``int8`` layer."""
    import torch
    from torchao.quantization import IntxUnpackedToInt8Tensor

    weight = IntxUnpackedToInt8Tensor(
        qdata=module.qweight,
        scale=module.scales.float(),
        zero_point=torch.zeros_like(module.scales, dtype=torch.int8),
        target_dtype=torch.int8,
        block_size=(1, module.in_features),
        dtype=torch.float32,
        activation_quantization="int8_asym_per_token",
    )
    return _linear(weight, module.bias)


def _transposed(module: Any) -> nn.Linear:
    """The linear layer (outputs, inputs) of a ``Conv1D``, whose weight is (inputs, outputs)."""
    return _linear(module.weight.T.contiguous(), module.bias)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    from torch import nn

    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer

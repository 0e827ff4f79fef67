"""Trainings of one subnetwork with layers in fewer bits: weights stay whole, and every step rounds them as files do.

Integers cannot be trained, so that an extracted subnetwork would only learn what is not rounded.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from nas.modeling.elastic import linear_weight
from nas.modeling.quantized import QuantizedLinear, fake_quant_linear, quantize
from nas.supernets.supernet import Supernet
from search_spaces import SubnetConfig
from search_spaces.dimensions.bits import FULL_PRECISION

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Rounded(torch.nn.Module):
    """Mixin of a linear layer that computes with its weight rounded; gradients ignore the rounding."""

    bits: str
    bias: torch.Tensor | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the layer (.., inputs) -> (.., outputs)."""
        return fake_quant_linear(x, linear_weight(self), self.bias, self.bits)


@cache
def _rounded_class(stock: type) -> type:
    return type(f"Rounded{stock.__name__}", (_Rounded, stock), {})


def trainable(supernet: Supernet, subnet: SubnetConfig) -> PreTrainedModel:
    """Returns an extracted subnetwork whose weights can be trained; in four bits it rounds to the nearest integers."""
    if set(subnet.bits) <= {FULL_PRECISION}:
        return supernet.extract(subnet)
    model = supernet.extract(subnet.with_values(bits=(FULL_PRECISION,) * len(subnet.bits)))
    for path, bits in _rounded_layers(supernet.extract(subnet)).items():
        layer: Any = model.get_submodule(path)
        layer.bits, layer.__class__ = bits, _rounded_class(type(layer))  # type: ignore[arg-type]
    return model


def with_stored_weights(model: PreTrainedModel, supernet: Supernet, subnet: SubnetConfig) -> PreTrainedModel:
    """Returns a subnetwork with the weights of a model, those of its layers in fewer bits as they are stored.

    Args:
        model: The subnetwork with whole weights, such as a result of `trainable`.
        supernet: A supernet that has it; gives the modules, not the weights.
        subnet: Its architecture.
    """
    stored, source = supernet.extract(subnet), model.state_dict()
    state = {name: source[name] for name in stored.state_dict() if name in source}
    for path, bits in _rounded_layers(stored).items():
        if f"{path}.qweight" not in source:
            weight = linear_weight(model.get_submodule(path)).detach()
            state |= {f"{path}.{name}": tensor for name, tensor in quantize(weight, bits).items()}
    stored.load_state_dict(state)
    return stored


def _rounded_layers(model: PreTrainedModel) -> dict[str, str]:
    """Path of each layer in fewer bits -> its dtype."""
    return {path: module.bits for path, module in model.named_modules() if isinstance(module, QuantizedLinear)}

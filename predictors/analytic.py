"""Analytic costs of a subnetwork: parameters, multiply-accumulates and file size, counted exactly from the table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search_spaces import Family, SubnetConfig, family_of
from search_spaces.family import widths

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Shape = tuple[int, ...]

COUNTED = ("num_parameters", "macs", "size_mb")
"""What is counted exactly."""


@dataclass(frozen=True)
class AnalyticCosts:
    """Counts any subnetwork of one parent; needs no torch once it is made.

    Attributes:
        family: Table of the parent's type.
        config: The parent's config.
        shapes: Name -> shape of each stored tensor of the parent; tied ones once.
        disk_names: Name -> the name ``save_pretrained`` writes it under.
        itemsize: Bytes of one stored number.
        dtype: Its name in a safetensors header, such as ``F32``.
    """

    family: Family
    config: PreTrainedConfig
    shapes: Mapping[str, Shape]
    disk_names: Mapping[str, str]
    itemsize: int
    dtype: str

    @classmethod
    def of(cls, model: PreTrainedModel) -> AnalyticCosts:
        """Reads the shapes of a parent model (its full size, whatever is active)."""
        from transformers.core_model_loading import revert_weight_conversion

        state = {name: tensor.detach() for name, tensor in model.named_parameters()}
        reverted = {id(tensor): name for name, tensor in revert_weight_conversion(model, dict(state)).items()}
        item = next(iter(state.values()))
        return cls(
            family=family_of(model.config.model_type),
            config=model.config,
            shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
            disk_names={name: reverted[id(tensor)] for name, tensor in state.items()},
            itemsize=item.element_size(),
            dtype={"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[str(item.dtype).removeprefix("torch.")],
        )

    def tensors(self, subnet: SubnetConfig) -> dict[str, Shape]:
        """Name in the extracted model -> shape, for every tensor it stores."""
        position_of = {layer: position for position, layer in enumerate(subnet.layers)}
        found: dict[str, Shape] = {}
        for name, shape in self.shapes.items():
            layer, axes = self.family.locate(name)
            if layer is None:
                found[name] = shape
            elif layer in position_of:
                width = widths(subnet, position_of[layer])
                active = tuple(self.family.active_size(axis, width, self.config) for axis in axes)
                found[self.family.renumber(name, position_of[layer])] = active + shape[len(active) :]
        return found

    def num_parameters(self, subnet: SubnetConfig) -> int:
        """Parameters of the extracted model, tied ones once."""
        return sum(math.prod(shape) for shape in self.tensors(subnet).values())

    def macs(self, subnet: SubnetConfig, sequence_length: int | None = None) -> int:
        """Multiply-accumulates of one forward pass on one sample.

        Counts matrix products and convolutions, attention scores and their weighted sum included; not norms,
        activations or additions.

        Args:
            subnet: What to count.
            sequence_length: Tokens of the sample; an image model ignores it.
        """
        tokens = self.family.sequence_length(self.config, sequence_length)
        runs = {"once": 1, "token": tokens, "patch": self.family.num_patches(self.config)}
        total = 0
        for name, shape in self.tensors(subnet).items():
            layer, axes = self.family.locate(name)
            module = name.removesuffix(".weight")
            if layer is not None and len(axes) == 2:
                total += tokens * math.prod(shape)
            elif layer is None and module != name:
                on = [runs[p] for path, p in self.family.positions.items() if f".{module}".endswith(f".{path}")]
                total += sum(on) * math.prod(shape)
        head_dim = self.family.head_dim(self.config)
        return total + sum(2 * tokens * tokens * heads * head_dim for heads in subnet.num_attention_heads)

    def size_bytes(self, subnet: SubnetConfig) -> int:
        """Size of the exported ``model.safetensors`` to the byte, header included.

        Source: the safetensors format, github.com/huggingface/safetensors#format.
        """
        tensors = sorted((self.disk_names[name], shape) for name, shape in self.tensors(subnet).items())
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in tensors:
            start, end = end, end + math.prod(shape) * self.itemsize
            header[name] = {"dtype": self.dtype, "shape": list(shape), "data_offsets": [start, end]}
        length = len(json.dumps(header, separators=(",", ":")).encode())
        return 8 + math.ceil(length / 8) * 8 + end

    def count(self, name: str, subnet: SubnetConfig, sequence_length: int | None = None) -> float:
        """One figure by name: ``num_parameters``, ``macs``, or ``size_mb`` in megabytes of 10^6 bytes."""
        if name == "size_mb":
            return self.size_bytes(subnet) / 1e6
        return float(self.macs(subnet, sequence_length) if name == "macs" else self.num_parameters(subnet))

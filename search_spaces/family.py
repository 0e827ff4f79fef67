"""Family: one transformer type as a table from module path to the axes of its weights.

Slicing, importance order, extraction, counting and export all read this one table, so a new type is one more table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from search_spaces.errors import InputError
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Axis = Literal["hidden", "heads", "ffn"]

FIELD_OF_AXIS: dict[str, str] = {"heads": "num_attention_heads", "ffn": "intermediate_size"}
"""The per-layer field of a subnetwork that says how much of an axis is active; `hidden` is the parent's."""


@dataclass(frozen=True)
class Family:
    """What is elastic in one Hugging Face model type, and where.

    Attributes:
        model_type: ``config.model_type`` of the stock model.
        auto_classes: Task name -> name of the auto class that loads it.
        layers: Path of the layer list, below the base model.
        modules: Module path below a layer -> axes of its weight, output first. A bias has the first axis.
        attributes: Module path below a layer -> attribute -> what it counts: ``heads`` or ``heads*head_dim``.
        positions: Modules outside the layers that multiply -> on what they run: ``once`` per sample, on every
            ``token``, or on every ``patch`` of an image. Paths are matched from the end, heads of any task included.
        head_dim_in_config: Whether a stock config can set ``head_dim`` apart from hidden_size / heads.
        intermediate_size: What the config calls the feed-forward width.
        special_tokens: Tokens that an image model puts before the patches.
        position_offset: Position embeddings that no token uses.
    """

    model_type: str
    auto_classes: Mapping[str, str]
    layers: str
    modules: Mapping[str, tuple[Axis, ...]]
    attributes: Mapping[str, Mapping[str, str]]
    positions: Mapping[str, Literal["once", "token", "patch"]]
    head_dim_in_config: bool
    intermediate_size: str = "intermediate_size"
    special_tokens: int = 1
    position_offset: int = 0

    def head_dim(self, config: PreTrainedConfig) -> int:
        """Channels of one attention head.

        Raises:
            InputError: If the heads do not divide the hidden size and the config gives no ``head_dim``.
        """
        hidden, heads = config.hidden_size, config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) if self.head_dim_in_config else None
        if head_dim is None and hidden % heads:
            raise InputError(
                f"`num_attention_heads` must divide `hidden_size`, but got {heads} and {hidden}; "
                "change the model's config."
            )
        return head_dim or hidden // heads

    def parent(self, config: PreTrainedConfig) -> SubnetConfig:
        """The whole model as a subnetwork."""
        return SubnetConfig.uniform(
            tuple(range(config.num_hidden_layers)),
            num_attention_heads=config.num_attention_heads,
            intermediate_size=getattr(config, self.intermediate_size),
        )

    def locate(self, parameter: str) -> tuple[int | None, tuple[Axis, ...]]:
        """Parent layer of a parameter (None outside the layers) and its axes (empty where nothing is elastic).

        Args:
            parameter: Its name in ``state_dict``, with or without the base model's prefix.
        """
        found = re.search(rf"(?:^|\.){re.escape(self.layers)}\.(\d+)\.(.+)\.(\w+)$", parameter)
        if found is None:
            return None, ()
        axes = self.modules.get(found[2], ())
        return int(found[1]), axes if found[3] == "weight" else axes[:1]

    def renumber(self, parameter: str, layer: int) -> str:
        """The same parameter's name in another layer."""
        return re.sub(rf"((?:^|\.){re.escape(self.layers)}\.)\d+\.", rf"\g<1>{layer}.", parameter, count=1)

    def active_size(self, axis: Axis, width: Mapping[str, int], config: PreTrainedConfig) -> int:
        """Rows of a weight that are active along an axis, given one layer's widths (field -> value)."""
        if axis == "hidden":
            return int(config.hidden_size)
        return width[FIELD_OF_AXIS[axis]] * self.unit(axis, config)

    def unit(self, axis: Axis, config: PreTrainedConfig) -> int:
        """Rows that one step of an axis stands for: a head's channels, one neuron."""
        return self.head_dim(config) if axis == "heads" else 1

    def attribute_value(self, formula: str, width: Mapping[str, int], config: PreTrainedConfig) -> int:
        """Value of a module attribute that must follow the active widths."""
        heads = width["num_attention_heads"]
        return {"heads": heads, "heads*head_dim": heads * self.head_dim(config)}[formula]

    def stock_config_update(self, config: PreTrainedConfig, subnet: SubnetConfig) -> dict[str, Any] | None:
        """Fields that make a stock config describe a subnetwork, or None where a stock config cannot."""
        if not subnet.is_uniform:
            return None
        update: dict[str, Any] = {
            "num_hidden_layers": subnet.num_hidden_layers,
            self.intermediate_size: subnet.intermediate_size[0],
        }
        if subnet.num_attention_heads[0] != config.num_attention_heads:
            if not self.head_dim_in_config:
                return None
            update["head_dim"] = self.head_dim(config)
            update["num_attention_heads"] = subnet.num_attention_heads[0]
        return update

    def sequence_length(self, config: PreTrainedConfig, sequence_length: int | None) -> int:
        """Tokens that the layers see: the workload's for text; patches and special tokens for images."""
        patches = self.num_patches(config)
        if patches:
            return patches + self.special_tokens
        assert sequence_length is not None
        return sequence_length

    def max_sequence_length(self, config: PreTrainedConfig) -> int | None:
        """The longest text the position embeddings allow, None for images."""
        positions = getattr(config, "max_position_embeddings", None)
        return None if positions is None else positions - self.position_offset

    def num_patches(self, config: PreTrainedConfig) -> int:
        """Patches of one image, 0 for a model that reads text."""
        if not hasattr(config, "patch_size"):
            return 0
        return math.prod(
            image // patch for image, patch in zip(_pair(config.image_size), _pair(config.patch_size), strict=True)
        )


def widths(subnet: SubnetConfig, position: int) -> dict[str, int]:
    """Widths of the kept layer at a position of ``subnet.layers``: field -> value."""
    return {field: getattr(subnet, field)[position] for field in FIELD_OF_AXIS.values()}


def _pair(value: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])

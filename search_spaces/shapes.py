"""Shapes: the size of each weight in a subnetwork: active rows, ranks, and the tensors that are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from search_spaces.dimension import Rank
from search_spaces.dimensions import DIMENSIONS
from search_spaces.family import Axes, Axis, Family
from search_spaces.inputs import Inputs
from search_spaces.module_kinds import CompressedTable, Kind, LowRank, Packed, Quantized, Shape, StoredTensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from search_spaces.blueprint import LayerBlueprint
    from search_spaces.layout import ParameterLocation

Rows = slice | np.ndarray
"""Active entries along one dimension of a weight: a prefix, or indices."""

FACTORIZED_AXES = {axis for one in DIMENSIONS.values() if isinstance(one, Rank) for axis in one.factorized_axes}
"""Axes of weights whose linear layers can become two factors."""

NAMES_IN_SUBNET = {
    "weight": (
        *Quantized.NAMES,
        *(f"{end}.{name}" for end in ("down", "up") for name in ("weight", *Quantized.NAMES)),
    ),
    "bias": ("up.bias",),
}
"""Parameter of a linear layer -> every other name under which the extracted model may store it."""

TABLE_NAMES_IN_SUBNET = (
    "up.weight",
    "down.weight",
    *(f"{start}{n}" for start in ("", "down.") for n in CompressedTable.NAMES),
)
"""Every other name under which the extracted model may store the table of token embeddings."""

ATTRIBUTE_FORMULAS: dict[str, Callable[[Mapping[str, int], int], int]] = {
    "heads": lambda sizes, head_dim: sizes["heads"],
    "kv_heads": lambda sizes, head_dim: sizes["kv_heads"],
    "heads_per_group": lambda sizes, head_dim: sizes["heads"] // max(sizes["kv_heads"], 1),
    "ffn": lambda sizes, head_dim: sizes["ffn"],
    "heads*head_dim": lambda sizes, head_dim: sizes["heads"] * head_dim,
    "hidden": lambda sizes, head_dim: sizes["hidden"],
    "experts": lambda sizes, head_dim: sizes["experts"],
    "experts_per_token": lambda sizes, head_dim: min(sizes["experts"], sizes["experts_per_token"]),
}
"""What an attribute of a module counts -> its value, from the active units of axes and the channels of a head."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of the weights of one parent, for any blueprint of a layer.

    ``sizes`` is everywhere axis -> active units, as `LayerBlueprint.sizes` has it.

    Attributes:
        family: The table of the parent's model type.
        sizes: The part of the parent's config that holds the sizes.
        head_dim: Channels of one attention head.
        inputs: The input of the parent.
    """

    family: Family
    sizes: PreTrainedConfig
    head_dim: int
    inputs: Inputs

    # -- sizes --------------------------------------------------------------------------------------------------------

    def channels_per_unit(self, axis: Axis) -> int:
        """Rows of a weight that one unit of an axis takes: the channels of a head, one for a neuron."""
        heads = {"qkv_heads": 3 * self.head_dim, **dict.fromkeys(("heads", "cross_heads", "kv_heads"), self.head_dim)}
        if axis in ("cross_points", "cross_offsets"):
            points = int(self.sizes.num_feature_levels * self.sizes.decoder_n_points)
            return points if axis == "cross_points" else 2 * points
        return heads.get(axis, 1)

    def size(self, axis: Axis | tuple[Axis, ...], sizes: Mapping[str, int]) -> int:
        """Active entries along a dimension of a weight."""
        if isinstance(axis, tuple):
            return sum(self.size(one, sizes) for one in axis)
        if axis == "embedding":
            return self.embedding_size if self.projects_embeddings else sizes["hidden"]
        if axis == "positions":
            return self.inputs.patches(sizes["image"]) + self.family.special_tokens + sizes["queries"]
        return sizes[axis] * self.channels_per_unit(axis)

    @property
    def projects_embeddings(self) -> bool:
        """Whether the embeddings have a width of their own and are projected to the hidden size."""
        return self.embedding_size != self._hidden_size

    @property
    def embedding_size(self) -> int:
        """Width of the embeddings, projected or not."""
        return int(getattr(self.sizes, self.family.names_in_config("embedding_size")[0], self._hidden_size))

    @property
    def _hidden_size(self) -> int:
        """Width of the residual stream; of several stages, of the last."""
        return self.inputs.stages[-1].width if self.inputs.stages else int(self.sizes.hidden_size)

    def shape(self, axes: Axes, sizes: Mapping[str, int], full: Shape) -> Shape:
        """Shape of a parameter with only its active entries; ``full`` is its shape in the parent."""
        active = [n if axis is None else self.size(axis, sizes) for axis, n in zip(axes, full, strict=False)]
        return (*active, *full[len(axes) :])

    def attribute_value(self, formula: str, sizes: Mapping[str, int]) -> int:
        """Value of a module attribute that must match the active heads; ``formula`` is in `ATTRIBUTE_FORMULAS`."""
        return ATTRIBUTE_FORMULAS[formula](sizes, self.head_dim)

    # -- modules ------------------------------------------------------------------------------------------------------

    def linear_layers(self, stack: int) -> dict[str, Axes]:
        """Path below a layer of a stack -> output and input axes of each linear layer in its blocks."""
        table = self.family.stacks[stack].modules
        return {path: axes for path, axes in table.items() if _is_linear(axes)}

    def linear_axes(self, location: ParameterLocation) -> Axes:
        """Output and input axes of a linear layer in a block of a layer; empty for any other module."""
        table = {} if location.stack is None else self.family.stacks[location.stack].modules
        axes = table.get(location.path, ())
        return axes if _is_linear(axes) else ()

    def is_embedding(self, location: ParameterLocation) -> bool:
        """Whether a module is the table of token embeddings, which may become a low-rank one."""
        path = self.family.embedding
        return bool(path) and location.stack is None and f".{location.path}".endswith(f".{path}")

    def kinds(self, location: ParameterLocation, blueprint: LayerBlueprint) -> tuple[Kind, ...]:
        """What a linear layer, or the table of token embeddings, becomes; nothing for any other module."""
        if self.is_embedding(location):
            return blueprint.kinds.get(self.family.embedding, ())
        return blueprint.kinds.get(location.path, ()) if self.linear_axes(location) else ()

    def low_rank(self, location: ParameterLocation, blueprint: LayerBlueprint) -> LowRank | None:
        """The two factors that a module becomes, None where it stays one matrix."""
        return next((kind for kind in self.kinds(location, blueprint) if isinstance(kind, LowRank)), None)

    @staticmethod
    def is_of_experts(location: ParameterLocation) -> bool:
        """Whether a parameter holds a matrix of each expert of a layer."""
        return len(location.axes) == 3 and location.axes[0] == "experts"

    # -- tensors ------------------------------------------------------------------------------------------------------

    def tensor_shapes(
        self, location: ParameterLocation, name: str, blueprint: LayerBlueprint, full: Shape
    ) -> dict[str, Shape]:
        """Shapes of the tensors that replace a parameter: its active entries, or two low-rank factors.

        Args:
            location: Where the parameter lies.
            name: Its name in its module, such as ``weight``.
            blueprint: Of its layer.
            full: Its shape in the parent.

        Returns:
            Name in the module -> shape.
        """
        low_rank = self.low_rank(location, blueprint)
        if low_rank is None:
            return {name: self.shape(location.axes, blueprint.sizes, full)}
        if self.is_embedding(location):
            tokens, channels = self.shape(location.axes, blueprint.sizes, full)
            return low_rank.tensors(channels, tokens)
        outputs, inputs = (self.size(axis, blueprint.sizes) for axis in self.linear_axes(location))  # type: ignore[arg-type]
        shapes = low_rank.tensors(outputs, inputs)
        return {factor: shapes[factor] for factor in low_rank.NAMES[name]}

    def stored_tensors(
        self, location: ParameterLocation, tensors: Mapping[str, StoredTensor], blueprint: LayerBlueprint
    ) -> dict[str, StoredTensor]:
        """Tensors in the file for a parameter, some of which may be stored in another dtype than the parent's.

        Args:
            location: Where the parameter lies.
            tensors: Name in the module -> tensor in the parent's dtype, with a shape from `tensor_shapes`.
            blueprint: Of its layer.

        Returns:
            Name in the module -> tensor.
        """
        packed = next((kind for kind in self.kinds(location, blueprint) if isinstance(kind, Packed)), None)
        if packed is None:
            return dict(tensors)
        stored: dict[str, StoredTensor] = {}
        for name, (shape, dtype, size) in tensors.items():
            if name not in packed.WEIGHTS:
                stored[name] = shape, dtype, size
                continue
            is_transposed = self.family.conv1d and name == "weight" and not self.is_embedding(location)
            new = packed.packed((shape[::-1] if is_transposed else shape, dtype, size))
            stored |= {name.removesuffix("weight") + end: tensor for end, tensor in new.items()}
        return stored

    # -- active entries -----------------------------------------------------------------------------------------------

    def active_rows(
        self, axis: Axis | tuple[Axis, ...] | None, sizes: Mapping[str, int], full: Mapping[str, int]
    ) -> Rows:
        """Active entries along a dimension of a weight.

        With grouped attention, a head stays in its group: the first heads of each of the first groups are active.

        Args:
            axis: What the dimension counts.
            sizes: Of its layer in the subnetwork.
            full: Of its layer in the parent.
        """
        if axis is None:
            return slice(None)
        if isinstance(axis, tuple):
            starts = np.cumsum([0, *(self.size(one, full) for one in axis)])
            indices = np.concatenate(
                [self._indices(one, sizes, full) + start for one, start in zip(axis, starts, strict=False)]
            )
        elif axis == "heads":
            indices = self._indices(axis, sizes, full)
        else:
            return slice(self.size(axis, sizes))
        is_prefix = (indices == np.arange(len(indices))).all()
        return slice(len(indices)) if is_prefix else indices

    def _indices(self, axis: Axis, sizes: Mapping[str, int], full: Mapping[str, int]) -> np.ndarray:
        if axis != "heads":
            return np.arange(self.size(axis, sizes))
        per_group = ATTRIBUTE_FORMULAS["heads_per_group"]
        groups = np.arange(sizes["kv_heads"]) * per_group(full, 0)
        heads = (groups[:, None] + np.arange(per_group(sizes, 0))).reshape(-1)
        return (heads[:, None] * self.head_dim + np.arange(self.head_dim)).reshape(-1)


def _is_linear(axes: Axes) -> bool:
    """Whether these are the axes of a linear layer that can be factorized and quantized."""
    flat = [one for axis in axes for one in (axis if isinstance(axis, tuple) else (axis,))]
    return len(axes) == 2 and None not in axes and any(axis in FACTORIZED_AXES for axis in flat)

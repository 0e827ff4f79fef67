"""Shapes: the size of each weight in a subnetwork: active rows, ranks, and the tensors that are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from search_spaces.dimension import Rank
from search_spaces.dimensions import DIMENSIONS
from search_spaces.dimensions.bits import FULL_PRECISION, StoredTensor, stored_weight
from search_spaces.dimensions.ranks import factor_rank
from search_spaces.family import Axes, Axis, Family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from search_spaces.layout import ParameterLocation

Shape = tuple[int, ...]
Rows = slice | np.ndarray
"""Active entries along one dimension of a weight: a prefix, or indices."""

FIELD_OF_AXIS = {axis: name for name, dimension in DIMENSIONS.items() for axis in dimension.axes}
"""Axis -> the dimension that gives its active size."""

RANK_OF_AXIS = {axis: n for n, one in DIMENSIONS.items() if isinstance(one, Rank) for axis in one.factorized_axes}
"""Axis -> the dimension that gives the rank of a linear layer with this axis."""

FACTOR_NAMES = {"weight": ("down.weight", "up.weight"), "bias": ("up.bias",)}
"""Parameter of a linear layer -> the parameters that replace it in two low-rank factors."""

QUANTIZED_NAMES = ("qweight", "scales")
NAMES_IN_SUBNET = {
    "weight": (
        *QUANTIZED_NAMES,
        *(f"{end}.{name}" for end in ("down", "up") for name in ("weight", *QUANTIZED_NAMES)),
    ),
    "bias": ("up.bias",),
}
"""Parameter of a linear layer -> every other name under which the extracted model may store it."""

ATTRIBUTE_FORMULAS: dict[str, Callable[[Mapping[str, int], int], int]] = {
    "heads": lambda values, head_dim: values["num_attention_heads"],
    "kv_heads": lambda values, head_dim: values["num_key_value_heads"],
    "heads_per_group": lambda values, head_dim: values["num_attention_heads"] // max(values["num_key_value_heads"], 1),
    "heads*head_dim": lambda values, head_dim: values["num_attention_heads"] * head_dim,
}
"""What an attribute of a module counts -> its value, from the values of its layer and the channels of a head."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of the weights of one parent, for any values of a layer's fields.

    ``values`` is everywhere one layer's field -> value, as `SubnetConfig.layer_values` gives it.

    Attributes:
        family: The table of the parent's model type.
        sizes: The part of the parent's config that holds the sizes.
        head_dim: Channels of one attention head.
    """

    family: Family
    sizes: PreTrainedConfig
    head_dim: int

    # -- sizes --------------------------------------------------------------------------------------------------------

    def channels_per_unit(self, axis: Axis) -> int:
        """Rows of a weight that one unit of an axis takes: the channels of a head, one for a neuron."""
        heads = {"qkv_heads": 3 * self.head_dim, **dict.fromkeys(("heads", "cross_heads", "kv_heads"), self.head_dim)}
        return heads.get(axis, 1)

    def size(self, axis: Axis | tuple[Axis, ...], values: Mapping[str, int]) -> int:
        """Active entries along a dimension of a weight."""
        if isinstance(axis, tuple):
            return sum(self.size(one, values) for one in axis)
        if axis == "embedding":
            return self.embedding_size if self.projects_embeddings else values["hidden_size"]
        return values[FIELD_OF_AXIS[axis]] * self.channels_per_unit(axis)

    @property
    def projects_embeddings(self) -> bool:
        """Whether the embeddings have a width of their own and are projected to the hidden size."""
        return self.embedding_size != self.sizes.hidden_size

    @property
    def embedding_size(self) -> int:
        """Width of the embeddings, projected or not."""
        return int(getattr(self.sizes, self.family.names_in_config("embedding_size")[0], self.sizes.hidden_size))

    def shape(self, axes: Axes, values: Mapping[str, int], full: Shape) -> Shape:
        """Shape of a parameter with only its active entries; ``full`` is its shape in the parent."""
        sizes = [n if axis is None else self.size(axis, values) for axis, n in zip(axes, full, strict=False)]
        return (*sizes, *full[len(axes) :])

    def attribute_value(self, formula: str, values: Mapping[str, int]) -> int:
        """Value of a module attribute that must match the active heads; ``formula`` is in `ATTRIBUTE_FORMULAS`."""
        return ATTRIBUTE_FORMULAS[formula](values, self.head_dim)

    # -- ranks --------------------------------------------------------------------------------------------------------

    def linear_axes(self, location: ParameterLocation) -> Axes:
        """Output and input axes of a linear layer in a block of a layer; empty for any other module."""
        table = {} if location.stack is None else self.family.stacks[location.stack].modules
        axes = table.get(location.path, ())
        return axes if len(axes) == 2 and None not in axes and _rank_field(axes) else ()

    def is_embedding(self, location: ParameterLocation) -> bool:
        """Whether a module is the table of token embeddings, which may become a low-rank one."""
        path = self.family.embedding
        return bool(path) and location.stack is None and f".{location.path}".endswith(f".{path}")

    def rank(self, location: ParameterLocation, values: Mapping[str, int]) -> int | None:
        """Rank of the two factors of a module, None where it stays one matrix."""
        if self.is_embedding(location):
            tokens, channels = self.shape(location.axes, values, (self.sizes.vocab_size, 0))
            return factor_rank(channels, tokens, values["embedding_rank"])
        axes = self.linear_axes(location)
        if not axes:
            return None
        outputs, inputs = (self.size(axis, values) for axis in axes)  # type: ignore[arg-type]
        return factor_rank(outputs, inputs, values[_rank_field(axes)])

    # -- tensors ------------------------------------------------------------------------------------------------------

    def tensor_shapes(
        self, location: ParameterLocation, name: str, values: Mapping[str, int], full: Shape
    ) -> dict[str, Shape]:
        """Shapes of the tensors that replace a parameter: its active entries, or two low-rank factors.

        Args:
            location: Where the parameter lies.
            name: Its name in its module, such as ``weight``.
            values: Values of its layer.
            full: Its shape in the parent.

        Returns:
            Name in the module -> shape.
        """
        rank = self.rank(location, values)
        if rank is None:
            return {name: self.shape(location.axes, values, full)}
        if self.is_embedding(location):
            tokens, channels = self.shape(location.axes, values, full)
            return {"down.weight": (tokens, rank), "up.weight": (channels, rank)}
        outputs, inputs = (self.size(axis, values) for axis in self.linear_axes(location))  # type: ignore[arg-type]
        shapes = {"down.weight": (rank, inputs), "up.weight": (outputs, rank), "up.bias": (outputs,)}
        return {factor: shapes[factor] for factor in FACTOR_NAMES[name]}

    def stored_tensors(
        self, location: ParameterLocation, shapes: Mapping[str, Shape], bits: str
    ) -> dict[str, StoredTensor]:
        """Tensors in the file for the weights of a module that are stored in another dtype than the parent's.

        Args:
            location: Where the module lies.
            shapes: Name in the module -> shape, from `tensor_shapes`.
            bits: The dtype, one of `search_spaces.dimensions.bits.DTYPES`.

        Returns:
            Name in the module -> tensor; empty where the dtype is the parent's.
        """
        stored: dict[str, StoredTensor] = {}
        for name in shapes if bits != FULL_PRECISION and self.linear_axes(location) else ():
            start, weight, end = name.rpartition("weight")
            if weight and not end:
                outputs, inputs = shapes[name][::-1] if self.family.conv1d and not start else shapes[name]
                tensors = stored_weight(outputs, inputs, bits)
                stored |= {f"{start}{new}": tensor for new, tensor in tensors.items()}
        return stored

    # -- active entries -----------------------------------------------------------------------------------------------

    def active_rows(
        self, axis: Axis | tuple[Axis, ...] | None, values: Mapping[str, int], full: Mapping[str, int]
    ) -> Rows:
        """Active entries along a dimension of a weight.

        With grouped attention, a head stays in its group: the first heads of each of the first groups are active.

        Args:
            axis: What the dimension counts.
            values: Values of its layer in the subnetwork.
            full: Values of its layer in the parent.
        """
        if axis is None:
            return slice(None)
        if isinstance(axis, tuple):
            starts = np.cumsum([0, *(self.size(one, full) for one in axis)])
            indices = np.concatenate(
                [self._indices(one, values, full) + start for one, start in zip(axis, starts, strict=False)]
            )
        elif axis == "heads":
            indices = self._indices(axis, values, full)
        else:
            return slice(self.size(axis, values))
        is_prefix = (indices == np.arange(len(indices))).all()
        return slice(len(indices)) if is_prefix else indices

    def _indices(self, axis: Axis, values: Mapping[str, int], full: Mapping[str, int]) -> np.ndarray:
        if axis != "heads":
            return np.arange(self.size(axis, values))
        per_group = ATTRIBUTE_FORMULAS["heads_per_group"]
        groups = np.arange(values["num_key_value_heads"]) * per_group(full, 0)
        heads = (groups[:, None] + np.arange(per_group(values, 0))).reshape(-1)
        return (heads[:, None] * self.head_dim + np.arange(self.head_dim)).reshape(-1)


def _rank_field(axes: Axes) -> str:
    flat = [one for axis in axes for one in (axis if isinstance(axis, tuple) else (axis,))]
    return next((RANK_OF_AXIS[axis] for axis in flat if axis in RANK_OF_AXIS), "")

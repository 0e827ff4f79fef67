"""Layout: the table of a family bound to one parent's config: where every width lies in every weight."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from search_spaces.dimensions.bits import WHOLE, InFile, stored_weight
from search_spaces.dimensions.ranks import DENSE
from search_spaces.errors import InputError
from search_spaces.families import family_of
from search_spaces.family import Axes, Axis, Family, Position, Skip, Stack
from search_spaces.inputs import Inputs
from search_spaces.space import SearchSpace
from search_spaces.subnet import BLOCKS, OF_ALL, RANKS, SubnetConfig
from search_spaces.validation import check_choices

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
from search_spaces.dimensions.ranks import factor_rank

Shape = tuple[int, ...]
Rows = slice | np.ndarray
"""Active entries along one dimension of a weight: a prefix, or the indices of several pieces."""

FIELD_OF_AXIS: dict[str, str] = {
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "cross_heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "qkv_heads": "num_attention_heads",
    "head_biases": "num_attention_heads",
    "ffn": "intermediate_size",
}
"""The field of a subnetwork that says how much of an axis is active."""

RANK_OF_AXIS: dict[str, str] = {
    **dict.fromkeys(("heads", "cross_heads", "kv_heads", "qkv_heads"), "attention_rank"),
    "ffn": "mlp_rank",
}
"""The field of a subnetwork that says the rank of a linear layer with such an axis."""

FACTORS = {"weight": ("down.weight", "up.weight"), "bias": ("up.bias",)}
"""Parameter of a linear layer -> those that take its place in two thin ones."""

ROUNDED = ("qweight", "scales")
ALSO_NAMED = {
    "weight": (*ROUNDED, *(f"{end}.{name}" for end in ("down", "up") for name in ("weight", *ROUNDED))),
    "bias": ("up.bias",),
}
"""Parameter of a linear layer -> every other name that something of it can have in the extracted model."""

FORMULAS: dict[str, Callable[[Mapping[str, int], int], int]] = {
    "heads": lambda width, head_dim: width["num_attention_heads"],
    "kv_heads": lambda width, head_dim: width["num_key_value_heads"],
    "heads_per_group": lambda width, head_dim: width["num_attention_heads"] // max(width["num_key_value_heads"], 1),
    "heads*head_dim": lambda width, head_dim: width["num_attention_heads"] * head_dim,
}
"""What an attribute of a module counts -> its value, from one layer's widths and the channels of a head."""


@dataclass(frozen=True)
class Place:
    """Where a parameter lies.

    Attributes:
        stack: Number of its stack; None outside the layers.
        layer: Its parent layer, numbered through all stacks; None outside the layers.
        path: Path of its module: below the layer, or in the model.
        axes: Axes of the parameter's own dimensions; empty where nothing is elastic.
    """

    stack: int | None
    layer: int | None
    path: str
    axes: Axes


class Layout:
    """What is elastic in one parent, and where.

    Args:
        config: The parent's Hugging Face config.

    Attributes:
        family: The table of its type.
        config: A copy of the config.
        sizes: The part of it that holds the sizes.
        inputs: What the parent reads.
        head_dim: Channels of one attention head.

    Raises:
        InputError: If the model type is not supported, or the config is one that its table does not cover.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self.family: Family = family_of(config.model_type)
        self.config = copy.deepcopy(config)
        self.sizes = getattr(self.config, self.family.sub_config) if self.family.sub_config else self.config
        for name, value in self.family.requires.items():
            if getattr(self.sizes, name, value) != value:
                raise InputError(
                    f"`{config.model_type}` is supported with `{name}` {value!r} only, but got "
                    f"{getattr(self.sizes, name)!r}; choose another model."
                )
        self.inputs = Inputs(self.family, self.sizes)
        self.head_dim = self._head_dim()
        self.locate = cache(self._locate)

    # -- the parent ---------------------------------------------------------------------------------------------------

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Layers of each stack."""
        return tuple(int(getattr(self.sizes, name)) for name in self.family.names("num_hidden_layers"))

    def _head_dim(self) -> int:
        """Channels of one attention head.

        Raises:
            InputError: If the heads do not divide the hidden size and the config gives no ``head_dim``, or an encoder
                and its decoder differ in them.
        """
        of_stack = [self._parent_size("num_attention_heads", number) for number in range(len(self.depths))]
        hidden, heads = self.sizes.hidden_size, of_stack[0]
        head_dim = getattr(self.sizes, "head_dim", None) if self.family.head_dim_in_config else None
        if head_dim is None and hidden % heads:
            raise InputError(
                f"`num_attention_heads` must divide `hidden_size`, but got {heads} and {hidden}; "
                "change the model's config."
            )
        if head_dim is None and len(set(of_stack)) > 1:
            raise InputError(
                f"the encoder and the decoder must have as many heads, but got {of_stack[0]} and {of_stack[1]}; "
                "choose another model."
            )
        return head_dim or hidden // heads

    @cached_property
    def widths(self) -> tuple[dict[str, int], ...]:
        """Full widths of the layers of each stack: field -> value."""
        fields = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "hidden_size")
        ranks = dict.fromkeys(RANKS, DENSE)
        return tuple({f: self._parent_size(f, k) for f in fields} | ranks for k in range(len(self.depths)))

    @cached_property
    def parent(self) -> SubnetConfig:
        """The whole model as a subnetwork."""
        of_layer = [width for depth, width in zip(self.depths, self.widths, strict=True) for _ in range(depth)]

        def values(field: str) -> tuple[int, ...]:
            return tuple(width[field] for width in of_layer)

        return SubnetConfig(
            layers=tuple(range(len(of_layer))),
            num_attention_heads=values("num_attention_heads"),
            intermediate_size=values("intermediate_size"),
            hidden_size=self.widths[0]["hidden_size"],
            num_key_value_heads=values("num_key_value_heads"),
        )

    def _parent_size(self, field: str, stack: int) -> int:
        if field == "num_key_value_heads" and "kv_heads" not in self.family.axes:
            field = "num_attention_heads"
        value: Any = getattr(self.sizes, self.family.names(field)[stack], None)
        if field == "intermediate_size" and self.family.ffn_of_ratio is not None:
            value = self.family.ffn_of_ratio(self.sizes, self.sizes.hidden_size, value)
        if value is None:  # GPT-2's n_inner
            value = 4 * self.sizes.hidden_size
        return int(value)

    # -- layers and their modules -------------------------------------------------------------------------------------

    def stack_of(self, layer: int) -> tuple[int, int]:
        """Number of the stack of a parent layer, and its index there."""
        for number, depth in enumerate(self.depths):
            if layer < depth:
                return number, layer
            layer -= depth
        raise IndexError(layer)

    def kept(self, subnet: SubnetConfig) -> list[list[int]]:
        """Positions in ``subnet.layers`` of the layers of each stack."""
        found: list[list[int]] = [[] for _ in self.depths]
        for position, layer in enumerate(subnet.layers):
            found[self.stack_of(layer)[0]].append(position)
        return found

    def _locate(self, parameter: str) -> Place:
        for number, stack in enumerate(self.family.stacks):
            found = re.search(rf"(?:^|\.){re.escape(stack.layers)}\.(\d+)\.(.+)$", parameter)
            if found:
                layer = int(found[1]) + sum(self.depths[:number])
                path, axes = _axes_of(found[2], stack.modules)
                return Place(number, layer, path, axes[::-1] if self.family.conv1d and len(axes) == 2 else axes)
        module, _, kind = parameter.rpartition(".")
        for key in sorted(self.family.outer, key=len, reverse=True):
            axes = self.family.outer[key]
            if f".{parameter}".endswith(f".{key}"):
                return Place(None, None, module, axes)
            if f".{module}".endswith(f".{key}"):
                return Place(None, None, module, axes if kind == "weight" else axes[:1])
        return Place(None, None, module, ())

    def renumber(self, parameter: str, stack: Stack, index: int) -> str:
        """The same parameter's name in another layer of its stack."""
        return re.sub(rf"((?:^|\.){re.escape(stack.layers)}\.)\d+\.", rf"\g<1>{index}.", parameter, count=1)

    def skips(self, stack: int, width: Mapping[str, int]) -> dict[str, Skip]:
        """Modules of a layer that its widths skip, and what they then return."""
        found: dict[str, Skip] = {}
        for block, (field, *_) in BLOCKS.items():
            if not width[field]:
                found |= self.family.stacks[stack].skips[block]  # type: ignore[index]
        return found

    def width_of(self, subnet: SubnetConfig, parameter: str) -> dict[str, int] | None:
        """Widths of the layer that a parameter lies in, or outside the layers; None where it is left out."""
        place = self.locate(parameter)
        if place.stack is None:
            return None if is_under(place.path, self.family.unused) else self.outer_width(subnet)
        position = self.position_of(subnet, place)
        if position is None:
            return None
        width = subnet.width(position)
        if not self.is_leading(place):
            return width
        widths = [subnet.width(other) for other in self.kept(subnet)[place.stack]]
        return {field: max(other[field] for other in widths) for field in width}

    def name_of(self, subnet: SubnetConfig, parameter: str) -> str:
        """Name in the extracted model of a parameter that is not left out."""
        place = self.locate(parameter)
        if place.stack is None:
            return parameter
        position = self.position_of(subnet, place)
        assert position is not None
        return self.renumber(
            parameter, self.family.stacks[place.stack], self.index_in_stack(subnet, place.stack, position)
        )

    def runs_on(self, place: Place) -> Position:
        """What a module of a layer runs on."""
        assert place.stack is not None
        is_source = place.path in self.family.stacks[place.stack].source
        return "source" if is_source else self.family.runs_on(place.stack)

    def is_leading(self, place: Place) -> bool:
        """Whether a module of the first layer serves its whole stack."""
        return place.stack is not None and place.path in self.family.stacks[place.stack].leading

    def position_of(self, subnet: SubnetConfig, place: Place) -> int | None:
        """Position in ``subnet.layers`` of the layer that has a module of a parent layer; None where none has."""
        assert place.stack is not None and place.layer is not None
        if self.is_leading(place):
            found = self.kept(subnet)[place.stack]
        else:
            found = [subnet.layers.index(place.layer)] if place.layer in subnet.layers else []
        return next((position for position in found if not self.is_skipped(subnet, position, place)), None)

    def is_skipped(self, subnet: SubnetConfig, position: int, place: Place) -> bool:
        """Whether a kept layer skips the block that a module belongs to."""
        if subnet.num_attention_heads[position] and subnet.intermediate_size[position]:
            return False
        assert place.stack is not None
        return is_under(place.path, self.skips(place.stack, subnet.width(position)))

    def index_in_stack(self, subnet: SubnetConfig, stack: int, position: int) -> int:
        """Which of the kept layers of its stack the one at a position of ``subnet.layers`` is."""
        return position - sum(layer < sum(self.depths[:stack]) for layer in subnet.layers)

    def outer_width(self, subnet: SubnetConfig) -> dict[str, int]:
        """Widths outside the layers: what all layers share is as wide as the widest of them needs."""
        heads = max(subnet.num_attention_heads)
        of_all = {name: getattr(subnet, name) for name in OF_ALL}
        return {**self.widths[0], "num_attention_heads": heads, **of_all}

    # -- widths -------------------------------------------------------------------------------------------------------

    def unit(self, axis: Axis) -> int:
        """Rows that one step of an axis stands for: a head's channels, one neuron."""
        heads = {"qkv_heads": 3 * self.head_dim, **dict.fromkeys(("heads", "cross_heads", "kv_heads"), self.head_dim)}
        return heads.get(axis, 1)

    def size(self, axis: Axis | tuple[Axis, ...], width: Mapping[str, int]) -> int:
        """Entries that are active along a dimension, given one layer's widths."""
        if isinstance(axis, tuple):
            return sum(self.size(part, width) for part in axis)
        if axis == "embedding":
            return width["hidden_size"] if self.embedding_is_hidden else self.embedding_size
        return width[FIELD_OF_AXIS[axis]] * self.unit(axis)

    @property
    def embedding_is_hidden(self) -> bool:
        """Whether embeddings are as wide as the residual stream, not projected to it."""
        return self.embedding_size == self.sizes.hidden_size

    @property
    def embedding_size(self) -> int:
        """Width of the embeddings, projected or not."""
        return int(getattr(self.sizes, self.family.names("embedding_size")[0], self.sizes.hidden_size))

    def shape(self, axes: Axes, width: Mapping[str, int], full: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a parameter with only its active entries."""
        sizes = [n if axis is None else self.size(axis, width) for axis, n in zip(axes, full, strict=False)]
        return (*sizes, *full[len(axes) :])

    # -- ranks --------------------------------------------------------------------------------------------------------

    def linear_axes(self, place: Place) -> Axes:
        """Output and input axes of a linear layer in a block of a layer; empty for any other module."""
        table = {} if place.stack is None else self.family.stacks[place.stack].modules
        axes = table.get(place.path, ())
        return axes if len(axes) == 2 and None not in axes and _rank_field(axes) else ()

    def is_embedding(self, place: Place) -> bool:
        """Whether a module is the table of token embeddings, which may become a thin one and a linear layer."""
        path = self.family.embedding
        return bool(path) and place.stack is None and f".{place.path}".endswith(f".{path}")

    def ties_embedding(self, task: str) -> bool:
        """Whether the output head of a task shares the table of token embeddings."""
        return task in ("fill-mask", "text-generation") and self.config.tie_word_embeddings

    def rank(self, place: Place, width: Mapping[str, int]) -> int | None:
        """Rank of the two factors of a module where these widths hold; None where it is one matrix."""
        if self.is_embedding(place):
            tokens, channels = self.shape(place.axes, width, (self.sizes.vocab_size, 0))
            return factor_rank(channels, tokens, width["embedding_rank"])
        axes = self.linear_axes(place)
        if not axes:
            return None
        outputs, inputs = (self.size(axis, width) for axis in axes)  # type: ignore[arg-type]
        return factor_rank(outputs, inputs, width[_rank_field(axes)])

    def pieces(self, place: Place, kind: str, width: Mapping[str, int], full: Shape) -> dict[str, Shape]:
        """What becomes of a parameter of a module: itself with its active entries, or those of two factors.

        Args:
            place: Where it lies.
            kind: Its name in its module.
            width: Widths of its layer.
            full: Its shape in the parent.

        Returns:
            Name in the module -> shape.
        """
        rank = self.rank(place, width)
        if rank is None:
            return {kind: self.shape(place.axes, width, full)}
        if self.is_embedding(place):
            tokens, channels = self.shape(place.axes, width, full)
            return {"down.weight": (tokens, rank), "up.weight": (channels, rank)}
        outputs, inputs = (self.size(axis, width) for axis in self.linear_axes(place))  # type: ignore[arg-type]
        shapes = {"down.weight": (rank, inputs), "up.weight": (outputs, rank), "up.bias": (outputs,)}
        return {factor: shapes[factor] for factor in FACTORS[kind]}

    def bits_of(self, subnet: SubnetConfig, place: Place) -> str:
        """In what numbers a module that a subnetwork has is stored; all but linear layers in those of the parent."""
        if not self.linear_axes(place):
            return WHOLE
        position = self.position_of(subnet, place)
        assert position is not None
        return subnet.bits[position]

    def stored_pieces(self, place: Place, pieces: Mapping[str, Shape], bits: str) -> dict[str, InFile]:
        """What stands in a file for those of the `pieces` of a module that are in other numbers than the parent's."""
        found: dict[str, InFile] = {}
        for kind in pieces if bits != WHOLE and self.linear_axes(place) else ():
            start, weight, end = kind.rpartition("weight")
            if weight and not end:
                outputs, inputs = pieces[kind][::-1] if self.family.conv1d and not start else pieces[kind]
                found |= {f"{start}{name}": one for name, one in stored_weight(outputs, inputs, bits).items()}
        return found

    # -- active entries -----------------------------------------------------------------------------------------------

    def rows(self, axis: Axis | tuple[Axis, ...] | None, width: Mapping[str, int], full: Mapping[str, int]) -> Rows:
        """Active entries along a dimension of a weight that the full widths of its layer are given for.

        A head stays in its group: of grouped attention heads, the first ones of each of the first groups are active.
        """
        if axis is None:
            return slice(None)
        if isinstance(axis, tuple):
            starts = np.cumsum([0, *(self.size(part, full) for part in axis)])
            pieces = [self._indices(part, width, full) + start for part, start in zip(axis, starts, strict=False)]
            indices = np.concatenate(pieces)
        elif axis == "heads":
            indices = self._indices(axis, width, full)
        else:
            return slice(self.size(axis, width))
        is_prefix = (indices == np.arange(len(indices))).all()
        return slice(len(indices)) if is_prefix else indices

    def _indices(self, axis: Axis, width: Mapping[str, int], full: Mapping[str, int]) -> np.ndarray:
        if axis != "heads":
            return np.arange(self.size(axis, width))
        per_group = FORMULAS["heads_per_group"]
        groups = np.arange(width["num_key_value_heads"]) * per_group(full, 0)
        heads = (groups[:, None] + np.arange(per_group(width, 0))).reshape(-1)
        return (heads[:, None] * self.head_dim + np.arange(self.head_dim)).reshape(-1)

    def attribute_value(self, formula: str, width: Mapping[str, int]) -> int:
        """Value of a module attribute that must follow the active widths."""
        return FORMULAS[formula](width, self.head_dim)

    # -- configs ------------------------------------------------------------------------------------------------------

    def depth_update(self, subnet: SubnetConfig) -> dict[str, Any]:
        """Config fields that say which layers are there: their number, and lists with one entry a layer."""
        names, depths = self.family.names("num_hidden_layers"), [len(kept) for kept in self.kept(subnet)]
        update: dict[str, Any] = dict(zip(names, depths, strict=True))
        if self.family.cache_depth and depths[-1] > depths[0]:
            update[self.family.cache_depth] = depths[-1]
        for name in self.family.per_layer:
            values = getattr(self.sizes, name, None)
            if values is not None:
                update[name] = [values[layer] for layer in subnet.layers]
        return update

    def first_differs(self, stack: int, subnet: SubnetConfig) -> bool:
        """Whether the first kept layer of a stack has modules that the first layer of a stock model lacks."""
        first = subnet.layers[self.kept(subnet)[stack][0]]
        return bool(self.family.stacks[stack].first_lacks) and self.stack_of(first)[1] > 0

    def first_modules(self, stack: int, subnet: SubnetConfig) -> dict[str, str]:
        """Modules that the first kept layer has and that of a stock model lacks -> one that is like it."""
        return dict(self.family.stacks[stack].first_lacks) if self.first_differs(stack, subnet) else {}

    # -- the space ----------------------------------------------------------------------------------------------------

    def search_space(self, choices: Mapping[str, Any], layer_order: Sequence[int] | None = None) -> SearchSpace:
        """The space that a recipe opens over this parent.

        Args:
            choices: Scope and lists of choices, as in the recipe; None where a dimension stays as it is.
            layer_order: Parent layers, most important first, once it is known.

        Raises:
            InputError: If a dimension does not vary in this family, or a choice is not within the parent.
        """
        check_choices(self, choices)
        return SearchSpace(self.parent, **choices, layer_order=layer_order, depths=self.depths)


def _rank_field(axes: Axes) -> str:
    parts = [part for axis in axes for part in (axis if isinstance(axis, tuple) else (axis,))]
    return next((RANK_OF_AXIS[part] for part in parts if part in RANK_OF_AXIS), "")


def is_under(path: str, modules: Iterable[str]) -> bool:
    """Whether a path is one of some modules, or lies in one."""
    return any(f"{path}.".startswith(f"{module}.") for module in modules)


def _axes_of(tail: str, table: Mapping[str, Axes]) -> tuple[str, Axes]:
    """Module path and axes of a parameter below a layer: of a raw parameter itself, a weight, or a bias."""
    path, _, kind = tail.rpartition(".")
    if tail in table:
        return path, table[tail]
    axes = table.get(path, ())
    return path, axes if kind == "weight" else axes[:1]

"""Layout: the table of a family bound to one parent's config: its layers, and where each parameter lies."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from search_spaces.blueprint import Blueprint, LayerBlueprint, LayerDraft
from search_spaces.dimensions import DIMENSIONS, PER_LAYER, PER_SUBNET
from search_spaces.dimensions.experts import PER_TOKEN
from search_spaces.errors import InputError
from search_spaces.families import family_of
from search_spaces.family import Axes, Family, RunsOn, Stack
from search_spaces.inputs import Inputs
from search_spaces.shapes import Shapes
from search_spaces.space import SearchSpace
from search_spaces.subnet import NUMERIC, SubnetConfig
from search_spaces.tasks import TASKS
from search_spaces.validation import check_choices

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


OUTSIDE = tuple(name for name, dimension in DIMENSIONS.items() if "head_biases" in dimension.axes)
"""Dimensions of layers on which the size of a module outside the layers depends, by their largest value."""


@dataclass(frozen=True)
class ParameterLocation:
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
    """The layers of one parent, and where each of its parameters lies.

    Args:
        config: The parent's Hugging Face config.
        task: Its task, which decides whether it has a text tower beside the image tower.

    Attributes:
        family: The table of its type.
        config: A copy of the config.
        sizes: The part of the config that holds the sizes.
        inputs: The input of the parent.
        head_dim: Channels of one attention head.
        shapes: Sizes of its weights in a subnetwork.

    Raises:
        InputError: If the model type is not supported, or the family's table does not cover the config.
    """

    def __init__(self, config: PreTrainedConfig, task: str = "") -> None:
        self.family: Family = family_of(config.model_type).for_task(task)
        self.config = copy.deepcopy(config)
        self.sizes = getattr(self.config, self.family.sub_config) if self.family.sub_config else self.config
        self._require_values()
        self.inputs = Inputs(self.family, self.sizes)
        self.head_dim = self._head_dim()
        self.shapes = Shapes(self.family, self.sizes, self.head_dim, self.inputs)
        self.locate = cache(self._locate)
        self.blueprint = lru_cache(1024)(self._blueprint)
        self._layer_blueprint = lru_cache(8192)(self._layer_of)
        self._outside = lru_cache(1024)(self._outside_of)

    def _require_values(self) -> None:
        """Raises InputError unless the config has the values for which the table is right."""
        hidden = dict.fromkeys(self.family.equal_to_hidden_size, getattr(self.sizes, "hidden_size", None))
        for name, value in {**self.family.required_values, **hidden}.items():
            own = self.field(name, value)
            if (list(own) if isinstance(own, tuple) else own) != value:
                raise InputError(
                    f"`{self.config.model_type}` is supported with `{name}` {value!r} only, but got {own!r}; choose "
                    "another model."
                )

    # -- the parent ---------------------------------------------------------------------------------------------------

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Layers of each stack."""
        return tuple(int(self.field(name)) for name in self.family.names_in_config("num_hidden_layers"))

    def field(self, name: str, *default: Any) -> Any:
        """A field of the config, of the part that holds the sizes, or of another part: ``text_config.hidden_size``.

        A name that ends in a number is an entry of a list: ``depths.0``.
        """
        part, _, last = name.rpartition(".")
        if last.isdigit():
            return getattr(self.sizes, part)[int(last)]
        return getattr(getattr(self.config, part) if part else self.sizes, last, *default)

    def hidden_size(self, subnet: SubnetConfig, stack: int) -> int:
        """Channels of the residual stream of a stack in a subnetwork."""
        if self.inputs.stages:
            return self.inputs.stages[stack].width
        return self.blueprint(subnet).outside.sizes[self.family.hidden_axis(stack)]

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Channels of the residual stream of each stack of the parent."""
        if self.inputs.stages:
            return tuple(stage.width for stage in self.inputs.stages)
        widths = [int(self.sizes.hidden_size) for _ in self.depths]
        if self.family.has_towers:
            widths[1] = DIMENSIONS["text_hidden_size"].parent_value(self, 1)
        return tuple(widths)

    def _head_dim(self) -> int:
        """Channels of one attention head.

        Raises:
            InputError: If the heads do not divide the hidden size and the config gives no ``head_dim``, or two stacks
                differ in the channels of a head.
        """
        stacks = range(len(self.depths))
        of_stack = [DIMENSIONS["num_attention_heads"].parent_value(self, number) for number in stacks]
        widths = self.widths
        hidden, heads = widths[0], of_stack[0]
        head_dim = getattr(self.sizes, "head_dim", None) if self.family.head_dim_in_config else None
        if head_dim is None and hidden % heads:
            raise InputError(
                f"`num_attention_heads` must divide `hidden_size`, but got {heads} and {hidden}; "
                "change the model's config."
            )
        if head_dim is None and any(hidden * n != width * heads for n, width in zip(of_stack, widths, strict=True)):
            raise InputError(
                f"{self._stacks_text} must have heads of as many channels, but got {of_stack} heads for "
                f"{[*widths]} channels; choose another model."
            )
        return head_dim or hidden // heads

    @property
    def _stacks_text(self) -> str:
        """What its stacks are, as messages name them."""
        if self.inputs.stages:
            return "all stages"
        return "the image tower and the text tower" if self.family.has_towers else "the encoder and the decoder"

    @cached_property
    def parent_values(self) -> tuple[dict[str, int], ...]:
        """Dimension whose values are numbers -> the parent's value in each stack."""
        names = (*NUMERIC, *PER_SUBNET)
        return tuple({n: DIMENSIONS[n].parent_value(self, k) for n in names} for k in range(len(self.depths)))

    @cached_property
    def parent(self) -> SubnetConfig:
        """The parent as a subnetwork."""
        layers = [full for depth, full in zip(self.depths, self.parent_values, strict=True) for _ in range(depth)]
        values: dict[str, Any] = {name: tuple(full[name] for full in layers) for name in NUMERIC}
        return SubnetConfig(range(len(layers)), **values, **{name: layers[0][name] for name in PER_SUBNET})

    # -- layers and their modules -------------------------------------------------------------------------------------

    def stack_of(self, layer: int) -> tuple[int, int]:
        """Number of the stack of a parent layer, and its index there."""
        for number, depth in enumerate(self.depths):
            if layer < depth:
                return number, layer
            layer -= depth
        raise IndexError(layer)

    def kept_positions(self, subnet: SubnetConfig) -> list[list[int]]:
        """Positions in ``subnet.layers`` of the layers of each stack."""
        positions: list[list[int]] = [[] for _ in self.depths]
        for position, layer in enumerate(subnet.layers):
            positions[self.stack_of(layer)[0]].append(position)
        return positions

    def _locate(self, parameter: str) -> ParameterLocation:
        for number, stack in enumerate(self.family.stacks):
            match = re.search(_entry_of((stack.layers, *stack.lists)), parameter)
            if match:
                layer = int(match["index"]) + sum(self.depths[:number])
                below = "" if match["list"] == stack.layers else f"{match['list']}."
                path, axes = _axes_of(below + match["rest"], stack.modules)
                stored = axes[::-1] if self.family.conv1d and len(axes) == 2 else axes
                return ParameterLocation(number, layer, path, stored)
        module, _, name = parameter.rpartition(".")
        for key in sorted(self.family.outside_layers, key=len, reverse=True):
            axes = self.family.outside_layers[key]
            if f".{parameter}".endswith(f".{key}"):
                return ParameterLocation(None, None, module, axes)
            if f".{module}".endswith(f".{key}"):
                return ParameterLocation(None, None, module, axes if name == "weight" else axes[:1])
        return ParameterLocation(None, None, module, ())

    def renumber(self, parameter: str, stack: Stack, index: int) -> str:
        """The same parameter's name in another layer of its stack."""
        match = re.search(_entry_of((stack.layers, *stack.lists)), parameter)
        assert match is not None
        return f"{parameter[: match.start('index')]}{index}{parameter[match.end('index') :]}"

    def blueprint_at(self, subnet: SubnetConfig, parameter: str) -> LayerBlueprint | None:
        """The blueprint of the layer that a parameter lies in, or of what is outside; None if it is removed."""
        location = self.locate(parameter)
        if location.stack is None:
            is_removed = is_under(location.path, self.family.unused_modules)
            return None if is_removed else self.blueprint(subnet).outside
        position = self.position_of(subnet, location)
        if position is None:
            return None
        layers = self.blueprint(subnet).layers
        if not self.is_shared_by_first_layer(location):
            return layers[position]
        stack = [layers[other].sizes for other in self.kept_positions(subnet)[location.stack]]
        return LayerBlueprint(location.stack, {axis: max(sizes[axis] for sizes in stack) for axis in stack[0]}, {})

    def name_in_subnet(self, subnet: SubnetConfig, parameter: str) -> str:
        """Name in the extracted model of a parameter that the subnetwork has."""
        location = self.locate(parameter)
        if location.stack is None:
            return parameter
        position = self.position_of(subnet, location)
        assert position is not None
        return self.renumber(
            parameter, self.family.stacks[location.stack], self.index_in_stack(subnet, location.stack, position)
        )

    def runs_on(self, location: ParameterLocation) -> RunsOn:
        """What a module of a layer runs on."""
        assert location.stack is not None
        is_source = location.path in self.family.stacks[location.stack].source_modules
        of_stack = self.family.stacks[location.stack].runs_on.get(location.path)
        return of_stack or ("source" if is_source else self.family.stack_runs_on(location.stack))

    def is_shared_by_first_layer(self, location: ParameterLocation) -> bool:
        """Whether the first layer has a module for all layers of its stack."""
        return location.stack is not None and location.path in self.family.stacks[location.stack].shared_by_first_layer

    def position_of(self, subnet: SubnetConfig, location: ParameterLocation) -> int | None:
        """Position in ``subnet.layers`` of the layer that has a module of a parent layer; None where none has."""
        assert location.stack is not None and location.layer is not None
        if self.is_shared_by_first_layer(location):
            positions = self.kept_positions(subnet)[location.stack]
        else:
            positions = [subnet.layers.index(location.layer)] if location.layer in subnet.layers else []
        return next((position for position in positions if not self.is_skipped(subnet, position, location)), None)

    def is_skipped(self, subnet: SubnetConfig, position: int, location: ParameterLocation) -> bool:
        """Whether a kept layer skips the block that a module belongs to."""
        return self.blueprint(subnet).layers[position].skips(location.path)

    def index_in_stack(self, subnet: SubnetConfig, stack: int, position: int) -> int:
        """Index, among the kept layers of its stack, of the layer at a position of ``subnet.layers``."""
        return position - sum(layer < sum(self.depths[:stack]) for layer in subnet.layers)

    def ties_embedding(self, task: str) -> bool:
        """Whether the output head of a task shares the table of token embeddings."""
        return TASKS[task].shares_embedding and self.config.tie_word_embeddings

    # -- blueprints ---------------------------------------------------------------------------------------------------

    @cached_property
    def full_sizes(self) -> tuple[dict[str, int], ...]:
        """Axis -> units of a layer of each stack of the parent.

        Also ``image``: pixels a side, 0 for the parent's own; ``experts_per_token``: those of a token.
        """
        return tuple(
            {axis: values[name] for name, dimension in DIMENSIONS.items() for axis in dimension.axes}
            | {"vocab": int(getattr(self.sizes, "vocab_size", 0)), "image": 0, "stage": width}
            | {"experts_per_token": int(getattr(self.sizes, PER_TOKEN, None) or 0)}
            | {"shared_ffn": int(getattr(self.sizes, "shared_expert_intermediate_size", 0)), "shared_gates": 1}
            for values, width in zip(self.parent_values, self.widths, strict=True)
        )

    def _blueprint(self, subnet: SubnetConfig) -> Blueprint:
        layers = [
            self._layer_blueprint(self.stack_of(layer)[0], tuple(subnet.all_values(position).values()))
            for position, layer in enumerate(subnet.layers)
        ]
        widest = tuple(max(getattr(subnet, name)) for name in OUTSIDE)
        return Blueprint(tuple(layers), self._outside(widest, tuple(getattr(subnet, name) for name in PER_SUBNET)))

    def _layer_of(self, stack: int, values: tuple[Any, ...]) -> LayerBlueprint:
        """The blueprint of a layer with these values of `PER_LAYER` and `PER_SUBNET`."""
        draft = LayerDraft(self, stack, self.full_sizes[stack])
        for name, value in zip((*PER_LAYER, *PER_SUBNET), values, strict=True):
            DIMENSIONS[name].apply(value, draft)
        return draft.finished()

    def _outside_of(self, widest: tuple[int, ...], values: tuple[Any, ...]) -> LayerBlueprint:
        """The blueprint outside the layers: what all layers share has the size that the widest of them needs."""
        draft = LayerDraft(self, None, self.full_sizes[0])
        for name, value in zip((*OUTSIDE, *PER_SUBNET), (*widest, *values), strict=True):
            DIMENSIONS[name].apply(value, draft)
        return draft.finished()

    # -- configs ------------------------------------------------------------------------------------------------------

    def config_update(self, subnet: SubnetConfig) -> dict[str, Any]:
        """Config fields of what a subnetwork keeps: numbers of layers, pieces and pixels, lists a layer."""
        names = self.family.names_in_config("num_hidden_layers")
        depths = [len(positions) for positions in self.kept_positions(subnet)]
        update: dict[str, Any] = dict(zip(names, depths, strict=True))
        if self.family.cache_depth_field and depths[-1] > depths[0]:
            update[self.family.cache_depth_field] = depths[-1]
        if self.family.has_vocabulary:
            update["vocab_size"] = self.blueprint(subnet).outside.sizes["vocab"]
        if self.family.reads_images and "image_size" not in self.family.fixed_reasons:
            side = self.blueprint(subnet).outside.sizes["image"]
            update["image_size"] = self.inputs.image_size(side) if side else self.inputs.own_image_size
        if self.family.has_queries:
            update[self.family.names_in_config("num_queries")[0]] = subnet.num_queries
        for name in self.family.per_layer_fields:
            values = getattr(self.sizes, name, None)
            if values is not None:
                update[name] = [values[layer] for layer in subnet.layers]
        return with_whole_lists(self.sizes, update)

    def index_attributes(self, subnet: SubnetConfig) -> dict[str, tuple[Any, Any]]:
        """Attributes of layers that follow from their index in a stock model -> the parent's value, and that there."""
        found: dict[str, tuple[Any, Any]] = {}
        for stack, positions in zip(self.family.stacks, self.kept_positions(subnet), strict=True):
            for index, position in enumerate(positions):
                own = self.stack_of(subnet.layers[position])[1]
                for name, value in stack.by_index.items():
                    values = value(self.sizes, own), value(self.sizes, index)
                    found[f"{stack.layers}.{index}.{name}"] = values
        return found

    def first_layer_differs(self, stack: int, subnet: SubnetConfig) -> bool:
        """Whether the first kept layer of a stack has modules that the first layer of a stock model lacks."""
        first = subnet.layers[self.kept_positions(subnet)[stack][0]]
        return bool(self.family.stacks[stack].missing_in_first_layer) and self.stack_of(first)[1] > 0

    def missing_in_first_layer(self, stack: int, subnet: SubnetConfig) -> dict[str, str]:
        """Modules of the first kept layer that the first layer of a stock model lacks -> a module like it."""
        if not self.first_layer_differs(stack, subnet):
            return {}
        return dict(self.family.stacks[stack].missing_in_first_layer)

    # -- the space ----------------------------------------------------------------------------------------------------

    def search_space(self, choices: Mapping[str, Any], layer_order: Sequence[int] | None = None) -> SearchSpace:
        """The search space of a recipe over this parent.

        Args:
            choices: Scope and lists of choices, as in `SearchSpace`; None where a dimension is fixed.
            layer_order: Parent layers, most important first, once it is known.

        Raises:
            InputError: If a dimension does not vary in this family, or a choice is not within the parent.
        """
        check_choices(self, choices)
        return SearchSpace(self.parent, **choices, layer_order=layer_order, depths=self.depths)


def config_part(config: PreTrainedConfig, family: Family, name: str) -> tuple[PreTrainedConfig, str]:
    """The part of a config that has a field, and the field's name there; ``name`` is as `Layout.field` takes it."""
    part, _, last = name.rpartition(".")
    section = part or family.sub_config
    return (getattr(config, section) if section else config), last


def update_config(config: PreTrainedConfig, family: Family, fields: Mapping[str, Any]) -> None:
    """Sets fields of a config, named as `Layout.field` takes them."""
    for name, value in fields.items():
        part, last = config_part(config, family, name)
        part.update({last: value})


def with_whole_lists(config: PreTrainedConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields in which entries of lists, such as ``depths.0``, are put together to whole lists of the same type."""
    whole: dict[str, Any] = {}
    for name, value in fields.items():
        part, _, last = name.rpartition(".")
        if not last.isdigit():
            whole[name] = value
            continue
        entries = list(whole.get(part, getattr(config, part)))
        entries[int(last)] = value
        whole[part] = type(getattr(config, part))(entries)
    return whole


def is_under(path: str, modules: Iterable[str]) -> bool:
    """Whether a path is one of the modules, or is inside one."""
    return any(f"{path}.".startswith(f"{module}.") for module in modules)


@cache
def _entry_of(lists: tuple[str, ...]) -> re.Pattern[str]:
    """What finds an entry of one of some lists in the name of a parameter: ``list``, ``index`` and the ``rest``."""
    names = "|".join(re.escape(path) for path in sorted(lists, key=len, reverse=True))
    return re.compile(rf"(?:^|\.)(?P<list>{names})\.(?P<index>\d+)\.(?P<rest>.+)$")


def _axes_of(tail: str, table: Mapping[str, Axes]) -> tuple[str, Axes]:
    """Module path and axes of a parameter below a layer: of a raw parameter itself, a weight, or a bias."""
    path, _, name = tail.rpartition(".")
    if tail in table:
        return path, table[tail]
    axes = table.get(path, ())
    return path, axes if name == "weight" else axes[:1]

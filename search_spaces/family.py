"""Family: one transformer type as a table from module path to the axes of its weights.

Slicing, importance order, extraction, counting and export all read this one table, bound to a parent's config by
`search_spaces.layout.Layout`; a new type is one more table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from search_spaces.dimensions import BLOCKS, DIMENSIONS
from search_spaces.tasks import DETECTION_TASKS, TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from search_spaces.blueprint import LayerBlueprint
    from search_spaces.layout import Layout
    from search_spaces.subnet import SubnetConfig


Axis = Literal[
    "hidden",
    "text_hidden",
    "stage",
    "heads",
    "cross_heads",
    "cross_points",
    "cross_offsets",
    "kv_heads",
    "qkv_heads",
    "head_biases",
    "ffn",
    "experts",
    "shared_ffn",
    "shared_gates",
    "embedding",
    "vocab",
    "positions",
    "queries",
]
"""What one dimension of a weight counts.

``text_hidden`` is the hidden size of a text tower beside an image tower. ``stage`` is that of one of several stages,
which is fixed. ``cross_heads`` are the heads of a decoder's cross-attention; where it is deformable, each head reads
some points: ``cross_points`` has a weight for each, ``cross_offsets`` two coordinates. ``qkv_heads`` interleaves
query, key and value head by head. ``head_biases`` are position biases that all layers share, one per head of the
widest layer. ``experts`` are those of a mixture; a weight of all of them has three dimensions. ``shared_ffn`` are the
neurons of an expert that every token runs through, ``shared_gates`` its gate. ``embedding`` is the width of the
embeddings where they are projected to the hidden size, else the hidden size itself. ``vocab`` are the pieces of the
tokenizer: rows of the table of token embeddings and of heads with an output for each. ``positions`` are the special
tokens and patches of an image that have learned positions; queries follow them. ``queries`` are the tokens in which a
detector finds objects.
"""

Axes = tuple[Axis | tuple[Axis, ...] | None, ...]
"""One entry per dimension of a weight, output first: an axis, several axes fused in one dimension, or None."""

RunsOn = str
"""What a module outside the layers runs on: ``once`` per sample; on what gets a ``label`` (the sample, or each token);
on every ``token`` (of the decoder, where there is one), every ``source`` token of an encoder-decoder, every ``patch``
of an image, every ``query`` of a detector, or every ``frame`` of a sound. ``convolution K``: on every output of the
K-th convolution of a wave. ``stride K``: once for every K x K pixels of an image; ``memory``: once for each of what
all maps of a detector hold together. On every token of a ``text``, in a model with two towers: texts are read
beforehand, so a pass over an image runs none. ``stage K``, ``queries K``, ``keys K``: see `Stage`. ``never``."""


class Stage(NamedTuple):
    """One stage of a hierarchical image model, as a parent's config has it; stages are numbered from 0.

    Attributes:
        width: Channels of its residual stream.
        tokens: Patches that its layers run on.
        queries: Tokens that queries are computed of: the patches, and the padding of windows.
        keys: Tokens that keys and values are computed of.
        attended: Keys that each query attends to.
    """

    width: int
    tokens: int
    queries: int
    keys: int
    attended: int


Skip = Literal[
    "input",
    "input, None",
    "zeros",
    "zeros, None",
    "zeros, None, None",
    "zeros, position_bias, None",
    "residual",
    "identity",
]
"""What a skipped module returns: its input, zeros of its shape, or its second argument (the residual). An attention
module returns a tuple: the output, then the position bias it was given or None for the attention weights."""


@dataclass(frozen=True)
class Stack:
    """One list of layers: the encoder, the decoder, or a tower.

    Attributes:
        layers: Path of the layer list, below the base model.
        modules: Path of a module or raw parameter below a layer -> axes of its weight. A bias has the first axis.
        attributes: Module path below a layer -> attribute -> what it counts, a name in `shapes.ATTRIBUTE_FORMULAS`. A
            path that ends in ``config`` is the config that this module reads.
        skips: ``attention`` or ``mlp`` -> the modules that skipping this block replaces -> what they then return.
        source_modules: Modules below a layer that run on the encoder's tokens: keys and values of cross-attention.
        runs_on: Other modules below a layer that run on something else than the layer does -> what that is.
        lists: Ends of the paths of lists outside the layers that hold a module for each layer: heads, where each layer
            of a decoder refines boxes. A layer that is dropped takes its own with it. Their modules are in ``runs_on``
            by the end of the list's path, without a number: ``decoder.bbox_embed.layers.0``.
        by_index: Attribute of a layer -> its value in a stock model, by the config and the index of the layer in its
            stack. A layer that moves up, because others are dropped, keeps its own.
        shared_by_first_layer: Modules that only the first layer has and all layers use, with the size that the widest
            layer needs. If that layer is dropped or its block skipped, the next layer has them.
        mixins: Module path below a layer -> class of `nas.modeling.modeling_nas` mixed into it, both in the supernet
            and in an export.
        missing_in_first_layer: Module path below a layer that the first layer of a stock model lacks -> one that is
            like it.
        attention_module: Path below a layer of the self-attention module, if it uses transformers' attention interface
            without a position bias and without a cap on its scores; else empty.
    """

    layers: str
    modules: Mapping[str, Axes]
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    skips: Mapping[Literal["attention", "mlp"], Mapping[str, Skip]] = field(default_factory=dict)
    source_modules: tuple[str, ...] = ()
    runs_on: Mapping[str, RunsOn] = field(default_factory=dict)
    lists: tuple[str, ...] = ()
    by_index: Mapping[str, Callable[[PreTrainedConfig, int], Any]] = field(default_factory=dict)
    shared_by_first_layer: tuple[str, ...] = ()
    mixins: Mapping[str, str] = field(default_factory=dict)
    missing_in_first_layer: Mapping[str, str] = field(default_factory=dict)
    attention_module: str = ""


@dataclass(frozen=True)
class Family:
    """What is elastic in one Hugging Face model type, and where.

    Attributes:
        model_type: ``config.model_type`` of the stock model.
        alike: The model type whose table this is, for a type without one of its own; else empty.
        tasks: Its tasks, names in `TASKS`.
        stacks: Its lists of layers: one, the encoder's and the decoder's, the image tower's and the text tower's, or
            those of its stages.
        outside_layers: Path of a module or raw parameter outside the layers -> axes of its weight, heads of all tasks
            included. Paths are matched from the end.
        runs_on: Module outside the layers that multiplies -> what it runs on.
        head_dim_in_config: Whether a stock config can set the channels of a head apart from hidden_size / heads.
        config_names: Our field -> its name in the config: one name for all stacks, or one per stack. A name with a dot
            is one in another part of the config than ``sub_config``, or the number of an entry of a list.
        per_layer_fields: Config fields that hold a list with one entry per layer.
        equal_to_hidden_size: Config fields that must equal hidden_size.
        ffn_from_ratio: Config, hidden size, ratio -> FFN neurons, for a config that holds an integer ratio instead.
        stride_of: Config, path of a convolution outside the layers -> pixels of an image, along a side, for each of
            its outputs; 0 for any other module. For a convolutional backbone, whose widths are fixed.
        map_strides: Config -> the same of each map that a detector's decoder reads.
        stages: Config -> its stages, if the residual stream has another width in each of its stacks.
        kv_heads_of: Config -> key and value heads, for a config that states them in other ways.
        cache_depth_field: Config field to add where the decoder is deeper than the encoder; without it, generation
            prepares a cache for too few layers.
        required_values: Config field -> the only value for which this table is right.
        unused_modules: Module outside the layers that no task uses -> attribute of its parent and field of the config
            to set to False when it is removed.
        fixed_reasons: Dimension -> why it cannot vary, although the layers have it.
        embedding: Path, in ``outside_layers``, of the table of token embeddings, if it may be factorized.
        embedding_fixed_reason: Why it may not be factorized; empty where the reason is not specific to the family.
        shared_layers: Whether all layers are one set of weights, applied again and again.
        shared_heads: Whether a head must keep its index in every layer, because position biases are shared.
        conv1d: Whether the layers store their linear weights input first, as GPT-2 does.
        special_tokens: Number of tokens that an image model puts before the patches.
        any_image_size: Whether it reads images of any size, so that its image processor says how large they are, not
            its config.
        cuts_patches: Whether its image processor cuts images of any shape into patches, as many as its config says.
        patch_size: Pixels a side that a token of its encoder stands for, where its config does not say.
        position_offset: Number of position embeddings that no token uses.
        learned_positions: End of the path of its position embeddings, if each position has learned ones.
        sub_config: Field of the config that holds the sizes, where they are not at its top.
        of_task: Task -> the table of its models of this task, which have other stacks than this one says.
        has_stock_config: Layout, subnetwork -> whether a stock config can describe it, for limits beyond its sizes.
        rescale_constants: Config, new hidden size -> parameter path -> (factor, offset). A stock model of another
            hidden size takes ``(weight + offset) * factor - offset``: constants computed from that size then cancel.
        extra_macs: Layout, blueprint of a layer, tokens -> multiply-accumulates of the layer beyond those of its
            weights, its scores and their weighted sum.
        extra_outside_macs: Layout, tokens -> multiply-accumulates outside the layers beyond those of ``runs_on``.
    """

    model_type: str
    tasks: tuple[str, ...]
    stacks: tuple[Stack, ...]
    outside_layers: Mapping[str, Axes]
    runs_on: Mapping[str, RunsOn]
    head_dim_in_config: bool
    alike: str = ""
    config_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    per_layer_fields: tuple[str, ...] = ()
    equal_to_hidden_size: tuple[str, ...] = ()
    ffn_from_ratio: Callable[[PreTrainedConfig, int, int], int] | None = None
    stride_of: Callable[[PreTrainedConfig, str], int] | None = None
    map_strides: Callable[[PreTrainedConfig], tuple[int, ...]] | None = None
    stages: Callable[[PreTrainedConfig], tuple[Stage, ...]] | None = None
    kv_heads_of: Callable[[PreTrainedConfig], int] | None = None
    cache_depth_field: str = ""
    required_values: Mapping[str, Any] = field(default_factory=dict)
    unused_modules: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    fixed_reasons: Mapping[str, str] = field(default_factory=dict)
    embedding: str = ""
    embedding_fixed_reason: str = ""
    shared_layers: bool = False
    shared_heads: bool = False
    conv1d: bool = False
    special_tokens: int = 1
    any_image_size: bool = False
    cuts_patches: bool = False
    patch_size: int = 0
    position_offset: int = 0
    learned_positions: str = ""
    sub_config: str = ""
    of_task: Mapping[str, Family] = field(default_factory=dict)
    has_stock_config: Callable[[Layout, SubnetConfig], bool] | None = None
    rescale_constants: Callable[[PreTrainedConfig, int], Mapping[str, tuple[float, float]]] | None = None
    extra_macs: Callable[[Layout, LayerBlueprint, int], int] | None = None
    extra_outside_macs: Callable[[Layout, int], int] | None = None

    @property
    def axes(self) -> set[str]:
        """Every axis that a layer has."""
        names: set[str] = set()
        for stack in self.stacks:
            for axes in stack.modules.values():
                for axis in axes:
                    names.update(axis if isinstance(axis, tuple) else [axis] if axis else [])
        return names

    @property
    def reads_images(self) -> bool:
        """Whether its tokens are patches of images."""
        return any("image" in task for task in self.tasks) or self.has_queries

    @property
    def has_towers(self) -> bool:
        """Whether its stacks are a tower for images and one for texts, each with a residual stream of its own."""
        return "text_hidden" in self.axes

    @property
    def has_queries(self) -> bool:
        """Whether it finds objects, each in a token of its own."""
        return any(task in DETECTION_TASKS for task in self.tasks)

    @property
    def all_tasks(self) -> tuple[str, ...]:
        """Its tasks, and those of its models with other stacks."""
        return (*self.tasks, *self.of_task)

    @property
    def decodes_queries(self) -> bool:
        """Whether a decoder of its own reads the queries, not the layers that read the patches."""
        return self.has_queries and len(self.stacks) > 1

    def for_task(self, task: str) -> Family:
        """The table of its models of a task."""
        return self.of_task.get(task, self)

    def hidden_axis(self, stack: int) -> Axis:
        """The axis of the residual stream of a stack."""
        if self.stages is not None:
            return "stage"
        return "text_hidden" if self.has_towers and stack else "hidden"

    @property
    def has_vocabulary(self) -> bool:
        """Whether its table says which weights have an entry for each piece of the tokenizer."""
        return any("vocab" in axes for axes in self.outside_layers.values())

    @property
    def dimensions(self) -> list[str]:
        """Recipe keys of the dimensions that may vary."""
        return [name for name, dimension in DIMENSIONS.items() if dimension.varies_in(self)]

    @property
    def all_dimensions(self) -> list[str]:
        """Its dimensions, and those of its models with other stacks."""
        others = [name for family in self.of_task.values() for name in family.dimensions]
        return list(dict.fromkeys([*self.dimensions, *others]))

    @property
    def skippable(self) -> list[str]:
        """Blocks that may be skipped in every stack, as width 0: ``attention``, ``mlp``."""
        open_blocks = [block for block, (width, *_) in BLOCKS.items() if width not in self.fixed_reasons]
        return [block for block in open_blocks if all(block in stack.skips for stack in self.stacks)]

    @property
    def runs(self) -> bool:
        """Whether a recipe can name one of its tasks."""
        return any(TASKS[task].default_metric for task in self.tasks)

    @property
    def generates(self) -> bool:
        """Whether its last stack is a decoder."""
        has_decoder = len(self.stacks) > 1 and not self.has_towers and self.stages is None
        return (has_decoder and not self.has_queries) or "text-generation" in self.tasks

    def is_causal(self, stack: int) -> bool:
        """Whether no token of a stack attends to a later one."""
        return self.generates and stack == len(self.stacks) - 1

    def stack_runs_on(self, stack: int) -> RunsOn:
        """What the layers of a stack run on."""
        if self.stages is not None:
            return f"stage {stack}"
        if self.has_towers:
            return "text" if stack else "token"
        return "source" if stack < len(self.stacks) - 1 else "token"

    def names_in_config(self, field: str) -> tuple[str, ...]:
        """What the config calls a field: one name a stack."""
        names = self.config_names.get(field, (field,))
        return names if len(names) == len(self.stacks) else names * len(self.stacks)

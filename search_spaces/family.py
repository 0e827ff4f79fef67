"""Family: one transformer type as a table from module path to the axes of its weights.

Slicing, importance order, extraction, counting and export all read this one table, bound to a parent's config by
`search_spaces.layout.Layout`; a new type is one more table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from search_spaces.layout import Layout
    from search_spaces.subnet import SubnetConfig


Axis = Literal["hidden", "heads", "cross_heads", "kv_heads", "qkv_heads", "head_biases", "ffn", "embedding"]
"""What one dimension of a weight counts. ``cross_heads`` are those of a decoder's cross-attention; ``qkv_heads``
interleaves query, key and value head by head; ``head_biases`` are position biases that all layers share, one for each
head of the widest layer; ``embedding`` is the width of embeddings that are projected to the hidden size, or the hidden
size itself where they are not."""

Axes = tuple[Axis | tuple[Axis, ...] | None, ...]
"""One entry for each dimension of a weight, output first: an axis, several fused along one dimension, or none."""

Position = Literal["once", "label", "token", "source", "patch", "frame"]
"""On what a module outside the layers runs: once a sample; on what gets a label, the sample or each token; on every
token (of the decoder, where there is one), every source token of an encoder-decoder, every patch of an image, or every
frame of a sound."""

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
"""What a skipped module returns: its input, zeros of its shape, its second argument (the residual), alone or with what
an attention module returns beside it: the position bias it was given, the attention weights."""


@dataclass(frozen=True)
class Stack:
    """One list of layers: the encoder, or the decoder.

    Attributes:
        layers: Path of the layer list, below the base model.
        modules: Path of a module or raw parameter below a layer -> axes of its weight. A bias has the first axis.
        attributes: Module path below a layer -> attribute -> what it counts, a name in `layout.FORMULAS`. A path that
            ends in ``config`` is the config that this module reads.
        skips: ``attention`` or ``mlp`` -> the modules that skipping this block replaces -> what they then return.
        source: Modules below a layer that run on the encoder's tokens: keys and values of cross-attention.
        leading: Modules that the first layer has for all of them, as wide as the widest needs; where that layer is
            dropped or its block skipped, the next one has them.
        wrappers: Module path below a layer -> class of `nas.modeling.modeling_nas` mixed into it, in supernet and
            export alike.
        first_lacks: Module path below a layer that the first layer of a stock model lacks -> one that is like it.
        attention: Path below a layer of the module whose self-attention goes through transformers' attention interface
            with no position bias or cap of its scores; empty where none does.
    """

    layers: str
    modules: Mapping[str, Axes]
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    skips: Mapping[Literal["attention", "mlp"], Mapping[str, Skip]] = field(default_factory=dict)
    source: tuple[str, ...] = ()
    leading: tuple[str, ...] = ()
    wrappers: Mapping[str, str] = field(default_factory=dict)
    first_lacks: Mapping[str, str] = field(default_factory=dict)
    attention: str = ""


@dataclass(frozen=True)
class Family:
    """What is elastic in one Hugging Face model type, and where.

    Attributes:
        model_type: ``config.model_type`` of the stock model.
        tasks: What it does, names in `TASKS`.
        stacks: Its lists of layers: one, or the encoder's and the decoder's.
        outer: Path of a module or raw parameter outside the layers -> axes of its weight. Paths are matched from the
            end, heads of any task included.
        positions: Modules outside the layers that multiply -> on what they run.
        head_dim_in_config: Whether a stock config can set the head's width apart from hidden_size / heads.
        config_names: Our field -> what the config calls it: one name for all stacks, or one a stack.
        per_layer: Config fields that hold a list with one entry a layer.
        equal_to_hidden: Config fields beside hidden_size that a stock model needs to be equal to it.
        ffn_of_ratio: Config, hidden size, ratio -> FFN neurons, where the config has a whole ratio in their place.
        cache_depth: Config field to add where the decoder is deeper than the encoder, because generation would else
            prepare a cache for too few layers.
        requires: Config field -> the only value for which this table is right.
        unused: Module outside the layers that no task uses -> attribute of its parent and field of the config that are
            False without it.
        fixed_hidden: Why the residual stream cannot be narrowed, where it cannot.
        embedding: Path, in ``outer``, of the table of token embeddings, where it may become two thin ones.
        whole_embedding: Why it may not, where there is one.
        shared_layers: Whether all layers are one set of weights, applied again and again.
        shared_heads: Whether a head must keep its place in every layer, because position biases are shared.
        conv1d: Whether the layers store their linear weights input first, as GPT-2 does.
        special_tokens: Tokens that an image model puts before the patches.
        position_offset: Position embeddings that no token uses.
        learned_positions: End of the path of its position embeddings, if each position has learned ones.
        sub_config: Field of the config that holds the sizes, where they are not at its top.
        stock_if: Whether a stock config can describe a subnetwork whose widths it can; by default it can.
        folds: Config, new hidden size -> parameter path -> (factor, offset): a stock model of another hidden size
            takes ``(weight + offset) * factor - offset``, so that constants computed from that size cancel.
        extra_macs: Layout, widths of a layer, tokens -> multiply-accumulates of a layer beyond its weights, its scores
            and their weighted sum.
    """

    model_type: str
    tasks: tuple[str, ...]
    stacks: tuple[Stack, ...]
    outer: Mapping[str, Axes]
    positions: Mapping[str, Position]
    head_dim_in_config: bool
    config_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    per_layer: tuple[str, ...] = ()
    equal_to_hidden: tuple[str, ...] = ()
    ffn_of_ratio: Callable[[PreTrainedConfig, int, int], int] | None = None
    cache_depth: str = ""
    requires: Mapping[str, Any] = field(default_factory=dict)
    unused: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    fixed_hidden: str = ""
    embedding: str = ""
    whole_embedding: str = ""
    shared_layers: bool = False
    shared_heads: bool = False
    conv1d: bool = False
    special_tokens: int = 1
    position_offset: int = 0
    learned_positions: str = ""
    sub_config: str = ""
    stock_if: Callable[[Layout, SubnetConfig], bool] | None = None
    folds: Callable[[PreTrainedConfig, int], Mapping[str, tuple[float, float]]] | None = None
    extra_macs: Callable[[Layout, Mapping[str, int], int], int] | None = None

    @property
    def axes(self) -> set[str]:
        """Every axis that a layer of it has."""
        found: set[str] = set()
        for stack in self.stacks:
            for axes in stack.modules.values():
                for axis in axes:
                    found.update(axis if isinstance(axis, tuple) else [axis] if axis else [])
        return found

    @property
    def dimensions(self) -> list[str]:
        """Recipe keys of what may vary."""
        found = ["num_hidden_layers"] + ["num_decoder_layers"] * (len(self.stacks) > 1) + ["num_attention_heads"]
        found += ["num_key_value_heads"] * ("kv_heads" in self.axes) + ["intermediate_size"]
        found += ["hidden_size"] * (not self.fixed_hidden) + ["attention_rank", "mlp_rank"]
        found += ["embedding_rank"] * bool(self.embedding) + ["bits"]
        return found + ["attention"] * all(stack.attention for stack in self.stacks)

    @property
    def skippable(self) -> list[str]:
        """Blocks that may be skipped in every stack: ``attention``, ``mlp``."""
        return [block for block in ("attention", "mlp") if all(block in stack.skips for stack in self.stacks)]

    @property
    def generates(self) -> bool:
        """Whether its last stack is a decoder."""
        return len(self.stacks) > 1 or "text-generation" in self.tasks

    def is_causal(self, stack: int) -> bool:
        """Whether no token of a stack attends to a later one."""
        return self.generates and stack == len(self.stacks) - 1

    def runs_on(self, stack: int) -> Position:
        """What the layers of a stack run on."""
        return "source" if stack < len(self.stacks) - 1 else "token"

    def names(self, field: str) -> tuple[str, ...]:
        """What the config calls a field: one name a stack."""
        names = self.config_names.get(field, (field,))
        return names if len(names) == len(self.stacks) else names * len(self.stacks)

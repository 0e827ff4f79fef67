"""SearchSpace: a parent, the dimensions that may vary, their choices and their scope."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain, product
from random import Random
from typing import Any, Literal

from search_spaces.dimensions.attention import FULL, sorted_by_cost
from search_spaces.dimensions.bits import sorted_by_precision
from search_spaces.dimensions.ranks import FULL_RANK
from search_spaces.errors import InputError
from search_spaces.parameters import Parameters
from search_spaces.subnet import BLOCKS, CATEGORICAL, GLOBAL_FIELDS, PER_LAYER, RANK_FIELDS, SubnetConfig, is_grouping

Scope = Literal["uniform", "per-layer"]

DEPTHS = ("num_hidden_layers", "num_decoder_layers")
"""Depth of each stack: the only one, or the encoder's and the decoder's."""


class SearchSpace:
    """All subnetworks of a parent that a search may visit.

    With scope ``uniform``, all kept layers have the same values and the most important layers stay. With scope
    ``per-layer``, each layer has its own values, the set of kept layers is searched too, and a choice of 0 heads or 0
    neurons skips that block.

    Args:
        parent: The full model as a subnetwork.
        num_hidden_layers: Allowed depths; of an encoder-decoder, of the encoder.
        num_decoder_layers: Allowed depths of the decoder of an encoder-decoder.
        num_attention_heads: Allowed head counts of a layer.
        num_key_value_heads: Allowed numbers of key and value heads of a layer. By default as many attention heads
            share a key and value head as in the parent.
        intermediate_size: Allowed feed-forward widths of a layer.
        hidden_size: Allowed widths of the residual stream.
        attention_rank: Allowed ranks of the linear layers of a layer's attention, in percent of break-even;
            `FULL_RANK` keeps the full matrix (see `SubnetConfig`).
        mlp_rank: The same for its feed-forward block.
        attention: Allowed attention patterns of a layer (see `AttentionPattern`).
        bits: Allowed dtypes of a layer's linear layers (see `search_spaces.dimensions.bits.BITS`).
        embedding_rank: Allowed ranks of the table of token embeddings, in percent of break-even.
        scope: ``uniform`` or ``per-layer``.
        layer_order: Parent layers, most important first; the order in which a shrinking depth keeps them.
            Defaults to first to last.
        depths: Layers of each stack of the parent; by default it has one.

    Raises:
        InputError: If a list of choices is empty, or a choice is not within the parent's own value or is unknown.
    """

    def __init__(
        self,
        parent: SubnetConfig,
        *,
        num_hidden_layers: Sequence[int] | None = None,
        num_decoder_layers: Sequence[int] | None = None,
        num_attention_heads: Sequence[int] | None = None,
        num_key_value_heads: Sequence[int] | None = None,
        intermediate_size: Sequence[int] | None = None,
        hidden_size: Sequence[int] | None = None,
        attention_rank: Sequence[int] | None = None,
        mlp_rank: Sequence[int] | None = None,
        attention: Sequence[str] | None = None,
        bits: Sequence[str] | None = None,
        embedding_rank: Sequence[int] | None = None,
        scope: Scope = "per-layer",
        layer_order: Sequence[int] | None = None,
        depths: Sequence[int] = (),
    ) -> None:
        self.parent, self.scope = parent, scope
        self.depths = tuple(depths) or (parent.num_hidden_layers,)
        ends = [sum(self.depths[: k + 1]) for k in range(len(self.depths))]
        self.stacks = tuple(range(end - depth, end) for end, depth in zip(ends, self.depths, strict=True))
        self.layer_order = tuple(layer_order) if layer_order is not None else parent.layers
        if sorted(self.layer_order) != list(parent.layers):
            raise InputError(f"`layer_order` must name each parent layer once, but got {list(self.layer_order)}.")
        if num_decoder_layers is not None and len(self.depths) == 1:
            raise InputError("`space.num_decoder_layers` is for an encoder-decoder, but the model has one stack only.")
        self.searches_groups = num_key_value_heads is not None
        sizes = parent.num_attention_heads, parent.num_key_value_heads, parent.intermediate_size
        heads, groups, width = map(max, sizes)
        lowest = int(scope == "uniform")
        depth_lists = {"num_hidden_layers": num_hidden_layers, "num_decoder_layers": num_decoder_layers}
        self.choices: dict[str, tuple[Any, ...]] = {
            **{name: _valid_choices(name, depth_lists[name], d) for name, d in zip(DEPTHS, self.depths, strict=False)},
            "num_attention_heads": _valid_choices("num_attention_heads", num_attention_heads, heads, lowest),
            "num_key_value_heads": _valid_choices("num_key_value_heads", num_key_value_heads, groups),
            "intermediate_size": _valid_choices("intermediate_size", intermediate_size, width, lowest),
            "hidden_size": _valid_choices("hidden_size", hidden_size, parent.hidden_size),
            "attention_rank": _valid_choices("attention_rank", attention_rank, FULL_RANK),
            "mlp_rank": _valid_choices("mlp_rank", mlp_rank, FULL_RANK),
        }
        if attention is not None:
            self.choices["attention"] = sorted_by_cost(tuple(attention)) or _valid_choices("attention", (), 0)
        if bits is not None:
            self.choices["bits"] = sorted_by_precision(tuple(bits)) or _valid_choices("bits", (), 0)
        if embedding_rank is not None:
            self.choices["embedding_rank"] = _valid_choices("embedding_rank", embedding_rank, FULL_RANK)
        self._heads_per_group = heads // groups
        self._possible_groups = {h: self._groups_for(h) for h in self.choices["num_attention_heads"]}

    def _groups_for(self, heads: int) -> tuple[int, ...]:
        """Numbers of key and value heads that ``heads`` attention heads can share, ascending."""
        if not heads:
            return (0,)
        choices = (
            self.choices["num_key_value_heads"] if self.searches_groups else (max(1, heads // self._heads_per_group),)
        )
        possible = tuple(g for g in choices if is_grouping(heads, g) and heads // g <= self._heads_per_group)
        if not possible or not (self.searches_groups or heads % self._heads_per_group == 0):
            raise InputError(
                "each choice of `space.num_attention_heads` must be a multiple of a number of key and value heads, at "
                f"most {self._heads_per_group} times it, but got {heads} with {list(choices)} key and value heads; "
                "change it or `space.num_key_value_heads`."
            )
        return possible

    # -- choices ------------------------------------------------------------------------------------------------------

    def block_choices(self, block: str) -> list[tuple[Any, ...]]:
        """Every choice for one block of a layer: values of its fields, in the order of `BLOCKS`."""
        width, *others = BLOCKS[block]
        choices: list[tuple[Any, ...]] = []
        for value in self.choices[width]:
            choices += product([value], *(self._choices_given(field, value) for field in others))
        return choices

    def _choices_given(self, field: str, width: int) -> tuple[Any, ...]:
        """Choices of another field of a block with the given width."""
        if field == "num_key_value_heads":
            return self._possible_groups[width]
        if field == "attention":
            return self._categories(field) if width else (FULL,)
        return self.choices[field] if width else (0,)

    @property
    def layer_choices(self) -> list[tuple[Any, ...]]:
        """Every choice for one layer: values of `PER_LAYER`; a layer never skips both blocks."""
        combinations = product(*(self.block_choices(block) for block in BLOCKS))
        layers = [tuple(chain(*blocks)) for blocks in combinations if any(block[0] for block in blocks)]
        return [(*values, bits) for values in layers for bits in self._categories("bits")]

    def _categories(self, field: str) -> tuple[str, ...]:
        """Choices of a field whose values are names; the default one if it is not searched."""
        return self.choices.get(field, (CATEGORICAL[field],))

    @property
    def size(self) -> int:
        """Number of distinct subnetworks, exact."""
        choices = [self.block_choices(block) for block in BLOCKS]
        per_layer = math.prod(map(len, choices)) - all(values[0][0] == 0 for values in choices)
        per_layer *= len(self._categories("bits"))
        total = math.prod(len(self.choices[name]) for name in self.global_fields)
        if self.scope == "uniform":
            return total * per_layer * math.prod(len(self.choices[name]) for name in self.depth_names)
        for name, layers in zip(self.depth_names, self.stacks, strict=True):
            total *= sum(math.comb(len(layers), depth) * per_layer**depth for depth in self.choices[name])
        return total

    @property
    def global_fields(self) -> list[str]:
        """Those of `GLOBAL_FIELDS` that have choices."""
        return [name for name in GLOBAL_FIELDS if name in self.choices]

    @property
    def has_low_ranks(self) -> bool:
        """Whether any subnetwork has a low-rank module."""
        return any(
            self.choices[rank][0] < FULL_RANK for rank in (*RANK_FIELDS, "embedding_rank") if rank in self.choices
        )

    @property
    def fields(self) -> list[str]:
        """Fields of a layer that are parameters of the search: widths, and the ranks and names that have choices."""
        fixed = {rank for rank in RANK_FIELDS if len(self.choices[rank]) == 1} | (
            CATEGORICAL.keys() - self.choices.keys()
        )
        fixed |= set() if self.searches_groups else {"num_key_value_heads"}
        return [field for field in PER_LAYER if field not in fixed]

    @property
    def depth_names(self) -> tuple[str, ...]:
        """Names of the depths of its stacks."""
        return DEPTHS[: len(self.depths)]

    def __contains__(self, subnet: SubnetConfig) -> bool:
        if not set(subnet.layers) <= set(self.parent.layers):
            return False
        choices = {"embedding_rank": (FULL_RANK,), **self.choices}
        if any(getattr(subnet, name) not in choices[name] for name in GLOBAL_FIELDS):
            return False
        depths = self.stack_depths(subnet)
        if any(n not in self.choices[name] for n, name in zip(depths, self.depth_names, strict=True)):
            return False
        for block, fields in BLOCKS.items():
            if not set(zip(*(getattr(subnet, field) for field in fields), strict=True)) <= set(
                self.block_choices(block)
            ):
                return False
        if not set(subnet.bits) <= set(self._categories("bits")):
            return False
        return self.scope == "per-layer" or (subnet.is_uniform and subnet.layers == self.most_important_layers(depths))

    def with_largest(self, share: float) -> SearchSpace:
        """The space in which each dimension keeps only a share of its choices: its largest ones, at least one."""
        open_choices = {
            name: values[-max(1, math.ceil(share * len(values))) :]
            for name, values in self.choices.items()
            if name != "num_key_value_heads"
        }
        return SearchSpace(**{**self.arguments(), **open_choices})

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the constructor that give this space."""
        open_choices = {n: v for n, v in self.choices.items() if n != "num_key_value_heads" or self.searches_groups}
        return {
            "parent": self.parent,
            **open_choices,
            "scope": self.scope,
            "layer_order": self.layer_order,
            "depths": self.depths,
        }

    def most_important_layers(self, depths: Sequence[int]) -> tuple[int, ...]:
        """The layers that stay, ascending, where each stack keeps the given number of its most important ones."""
        kept: list[int] = []
        for depth, layers in zip(depths, self.stacks, strict=True):
            kept += [layer for layer in self.layer_order if layer in layers][:depth]
        return tuple(sorted(kept))

    def stack_depths(self, subnet: SubnetConfig) -> tuple[int, ...]:
        """Number of layers of each stack that a subnetwork keeps."""
        return tuple(sum(layer in stack for layer in subnet.layers) for stack in self.stacks)

    def nearest_groups(self, heads: int, groups: int) -> int:
        """The number of key and value heads nearest to ``groups`` that ``heads`` attention heads can share."""
        return min(self._possible_groups[heads], key=lambda g: (abs(g - groups), -g))

    @cached_property
    def parameters(self) -> Parameters:
        """The parameters of an Optuna study over this space."""
        return Parameters(self)

    # -- points of interest ---------------------------------------------------------------------------------------

    def _uniform(self, values: dict[str, Any]) -> SubnetConfig:
        """The uniform subnetwork of these values, with the nearest possible number of key and value heads."""
        heads = values["num_attention_heads"]
        return SubnetConfig.uniform(
            self.most_important_layers([values[name] for name in self.depth_names]),
            num_attention_heads=heads,
            num_key_value_heads=self.nearest_groups(heads, values["num_key_value_heads"]),
            intermediate_size=values["intermediate_size"],
            **{name: values[name] for name in self.global_fields},
            **{rank: values[rank] for rank in RANK_FIELDS},
            **{name: values.get(name, default) for name, default in CATEGORICAL.items()},
        )

    @property
    def _without_skips(self) -> dict[str, tuple[Any, ...]]:
        """The choices except 0, which skips a block."""
        return {name: tuple(v for v in values if v) for name, values in self.choices.items()}

    @property
    def largest(self) -> SubnetConfig:
        """Every dimension at its largest choice."""
        return self._uniform({name: values[-1] for name, values in self._without_skips.items()})

    @property
    def smallest(self) -> SubnetConfig:
        """Every dimension at its smallest choice, no block skipped."""
        return self._uniform({name: values[0] for name, values in self._without_skips.items()})

    def uniform_scalings(self) -> list[SubnetConfig]:
        """The baseline of uniform scaling: at each depth, all widths shrink together; largest first.

        Each width is at the same fraction of its list of choices, as in a model family such as BERT-mini, -small,
        -medium; so are the depths of an encoder and its decoder. Ranks, attention and bits are at their last (most
        accurate) choice.
        """
        widths = {name: values for name, values in self._without_skips.items() if name not in DEPTHS}
        widths |= {
            name: widths[name][-1:] for name in (*RANK_FIELDS, *CATEGORICAL, "embedding_rank") if name in widths
        }
        depths = {name: self.choices[name] for name in self.depth_names}
        wide, deep = (max(map(len, choices.values())) for choices in (widths, depths))
        scalings = [
            self._uniform(
                {n: _at_fraction(v, d, deep) for n, v in depths.items()}
                | {n: _at_fraction(v, w, wide) for n, v in widths.items()}
            )
            for d in reversed(range(deep))
            for w in reversed(range(wide))
        ]
        return list({subnet.key: subnet for subnet in scalings}.values())

    def neighbours(self, subnet: SubnetConfig) -> list[SubnetConfig]:
        """Every subnetwork one step away: one parameter at an adjacent choice, or one layer added or removed."""
        params = self.parameters.from_subnet(subnet)
        neighbours: dict[str, SubnetConfig] = {}
        for name, values in self.parameters.items():
            index = values.index(params[name])
            for other in (index - 1, index + 1):
                if 0 <= other < len(values):
                    neighbour = self.parameters.to_subnet({**params, name: values[other]})
                    neighbours[neighbour.key] = neighbour
        neighbours.pop(subnet.key, None)
        return list(neighbours.values())

    def sample(self, rng: Random) -> SubnetConfig:
        """One random subnetwork: uniform depths, then uniform layers, then uniform values of each layer."""
        if self.scope == "uniform":
            return self._uniform({name: rng.choice(values) for name, values in self.choices.items()})
        layers: list[int] = []
        for name, stack in zip(self.depth_names, self.stacks, strict=True):
            layers += sorted(rng.sample(stack, rng.choice(self.choices[name])))
        sampled = [self._sample_layer(rng) for _ in layers]
        layer_values: dict[str, Any] = {field: tuple(values[field] for values in sampled) for field in sampled[0]}
        global_values = {name: rng.choice(self.choices[name]) for name in self.global_fields}
        return SubnetConfig(tuple(layers), **global_values, **layer_values)

    def _sample_layer(self, rng: Random) -> dict[str, Any]:
        while True:
            values = {fields[0]: rng.choice(self.choices[fields[0]]) for fields in BLOCKS.values()}
            if any(values.values()):
                break
        for width, *others in BLOCKS.values():
            searched = [field for field in others if field in self.choices]
            values |= {field: rng.choice(self._choices_given(field, values[width])) for field in searched}
        return values | ({"bits": rng.choice(self.choices["bits"])} if "bits" in self.choices else {})

    def sample_mixed(self, rng: Random) -> SubnetConfig:
        """One random subnetwork for training: with probability 1/2 uniform, with the most important layers kept."""
        if rng.random() < 0.5:
            return self._uniform({name: rng.choice(values) for name, values in self._without_skips.items()})
        return self.sample(rng)

    def __iter__(self) -> Iterator[SubnetConfig]:
        """Every subnetwork of a ``uniform`` space; a ``per-layer`` one is too large to enumerate."""
        if self.scope != "uniform":
            raise InputError("only a space of scope `uniform` can be enumerated; sample a `per-layer` one.")
        names = (*self.depth_names, *self.global_fields)
        for values in product(*(self.choices[name] for name in names)):
            for layer in self.layer_choices:
                yield self._uniform(dict(zip((*names, *PER_LAYER), (*values, *layer), strict=True)))


def _valid_choices(name: str, values: Sequence[int] | None, largest: int, lowest: int = 1) -> tuple[int, ...]:
    """Sorted distinct choices of one dimension; the parent's value if None."""
    if values is None:
        return (largest,)
    if not values:
        raise InputError(f"`space.{name}` must hold at least one choice, but got []; leave it out to keep {largest}.")
    wrong = [v for v in values if not lowest <= v <= largest]
    if wrong or not max(values):
        raise InputError(
            f"`space.{name}` must lie between {max(lowest, 1)} and the parent's {largest}"
            f"{'' if lowest else ', or be 0, with other choices, to skip the block'}, but got {wrong or list(values)}."
        )
    return tuple(sorted(set(values)))


def _at_fraction(values: Sequence[int], step: int, steps: int) -> int:
    """The choice at the same fraction of ``values`` as ``step`` is of ``steps``."""
    return values[round(step * (len(values) - 1) / max(steps - 1, 1))]

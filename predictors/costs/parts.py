"""Parts: what each block of each layer costs, and all that lies outside the layers; a subnetwork is their sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from predictors.costs.activation_memory import cached_numbers, live_numbers
from search_spaces import Layout, SubnetConfig
from search_spaces.dimensions.attention import AttentionPattern
from search_spaces.family import RunsOn
from search_spaces.layout import ParameterLocation, is_under
from search_spaces.shapes import FIELD_OF_AXIS
from search_spaces.subnet import BLOCKS, GLOBAL_FIELDS

Shape = tuple[int, ...]
Pieces = dict[str, dict[str, Shape]]
"""Parent name -> the tensors that the extracted model holds of it: name in their module -> shape."""

Blocks = tuple[str, ...]
"""Blocks of a layer whose widths say what is left of a tensor there."""

OUTER = "outer"
"""Stands for what lies outside the layers, and for what a first layer has for its whole stack."""


class Part(NamedTuple):
    """Costs of a part for one sample: numbers, or arrays with one for each of many parts.

    Attributes:
        num_parameters: Parameters, tied ones once.
        macs: Multiply-accumulates.
        weights: Numbers in the weights that multiply.
        moved: Numbers that products read and write beside their weights.
        live: Numbers in the tensors that are alive at once where most are, weights not among them.
        cached: Numbers in the keys and values of all tokens.
    """

    num_parameters: Any = 0
    macs: Any = 0
    weights: Any = 0
    moved: Any = 0
    live: Any = 0
    cached: Any = 0


@dataclass(frozen=True)
class Parts:
    """Counts the parts of any subnetwork of one parent, each that differs once.

    Attributes:
        layout: Table of the parent.
        parameters: Name -> shape of each parameter; tied ones once.
        multiplied: Name -> shape of each weight that a forward pass uses; tied ones under each of their names.
        label_tokens: Whether every token gets a label or a score, not every sample.
        tabled: What a `PartTable` has counted.
    """

    layout: Layout
    parameters: Mapping[str, Shape]
    multiplied: Mapping[str, Shape]
    label_tokens: bool
    tabled: dict[Any, Part] = field(default_factory=dict, repr=False, compare=False)
    _known: dict[Any, Part] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, subnet: SubnetConfig, sequence_length: int | None) -> Iterator[Part]:
        """All parts of a subnetwork."""
        yield self.outer(subnet, sequence_length)
        for position in range(len(subnet.layers)):
            for blocks in self.block_sets:
                yield self.of_layer(subnet, position, blocks, sequence_length)

    def outer(self, subnet: SubnetConfig, sequence_length: int | None) -> Part:
        """All outside the layers; it depends on what holds for all layers and on the most heads of each stack."""
        heads = [max(subnet.num_attention_heads[k] for k in kept) for kept in self.layout.kept_positions(subnet)]
        key = (sequence_length, *(getattr(subnet, name) for name in GLOBAL_FIELDS), *heads)
        return self._remembered(key, lambda: self._outer(subnet, sequence_length))

    def of_layer(self, subnet: SubnetConfig, position: int, blocks: Blocks, sequence_length: int | None) -> Part:
        """What in a kept layer depends on these blocks: on their fields and the hidden size."""
        fields = [getattr(subnet, field)[position] for block in blocks for field in BLOCKS[block]]
        key = (sequence_length, blocks, subnet.layers[position], subnet.hidden_size, *fields)
        return self._remembered(key, lambda: self._of_layer(subnet, position, blocks, sequence_length))

    def _remembered(self, key: Any, count: Callable[[], Part]) -> Part:
        if key not in self._known:
            self._known[key] = count()
        return self._known[key]

    def _outer(self, subnet: SubnetConfig, sequence_length: int | None) -> Part:
        runs, held = self._runs(sequence_length), self._held[OUTER]
        found = pieces_of(self.layout, subnet, {name: self.parameters[name] for name in held})
        family = self.layout.family
        runs_on: dict[str, RunsOn] = dict.fromkeys([family.embedding] * bool(family.embedding), "token")
        macs = weights = moved = largest = 0
        for name, shapes in self._products(subnet, OUTER):
            module, numbers = name.removesuffix(".weight"), sum(map(math.prod, shapes))
            for path, position in {**family.runs_on, **runs_on}.items():
                if f".{module}".endswith(f".{path}"):
                    flow = runs[position] * sum(map(_flow, shapes))
                    macs, weights, moved = macs + runs[position] * numbers, weights + numbers, moved + flow
                    largest = max(largest, flow)
        live = largest + subnet.hidden_size * runs["token"]
        return Part(_numbers(found), macs, weights, moved, live)

    def _of_layer(self, subnet: SubnetConfig, position: int, blocks: Blocks, sequence_length: int | None) -> Part:
        layout, layer, runs = self.layout, subnet.layers[position], self._runs(sequence_length)
        held = self._held.get((layer, blocks), [])
        found = pieces_of(layout, subnet, {name: self.parameters[name] for name in held})
        macs = weights = moved = live = cached = 0
        for name, shapes in self._products(subnet, (0 if layout.family.shared_layers else layer, blocks)):
            place = layout.locate(name)
            if len(place.axes) == 2 and None not in place.axes:
                times, numbers = runs[layout.runs_on(place)], sum(map(math.prod, shapes))
                macs, weights = macs + times * numbers, weights + numbers
                moved += times * sum(map(_flow, shapes))
        if len(blocks) == 1 and getattr(subnet, BLOCKS[blocks[0]][0])[position]:
            live = live_numbers(layout, subnet, position, blocks[0], runs, self._modules)
        if blocks == ("attention",):
            macs += self._attention_macs(subnet, position, runs)
            cached = cached_numbers(layout, subnet, position, runs)
        return Part(_numbers(found), macs, weights, moved, live, cached)

    def _products(self, subnet: SubnetConfig, where: Any) -> Iterator[tuple[str, list[Shape]]]:
        """Weights that multiply in a part, and the shapes of what is left of them; no table that is looked up in."""
        names = self._used.get(where, [])
        found = pieces_of(self.layout, subnet, {name: self.multiplied[name] for name in names})
        for name, shapes in found.items():
            looked_up = {"weight", "down.weight"} if self.layout.shapes.is_embedding(self.layout.locate(name)) else ()
            yield name, [shape for kind, shape in shapes.items() if kind not in looked_up]

    def _attention_macs(self, subnet: SubnetConfig, position: int, runs: Mapping[RunsOn, int]) -> int:
        """Scores and their weighted sum in one layer, of self-attention and cross-attention."""
        layout, width = self.layout, subnet.layer_values(position)
        number, _ = layout.stack_of(subnet.layers[position])
        family, tokens = layout.family, runs[layout.family.stack_runs_on(number)]
        pattern = AttentionPattern.parse(subnet.attention[position])
        own = tokens * tokens if pattern is None else pattern.computed_pairs(tokens, causal=family.is_causal(number))
        crossed = tokens * runs["source"] if family.stacks[number].source_modules else 0
        found = 2 * (own + crossed) * width["num_attention_heads"] * layout.head_dim
        extra = family.extra_macs
        return found + (extra(layout, width, tokens) if extra is not None else 0)

    # -- where each tensor belongs ------------------------------------------------------------------------------------

    def _runs(self, sequence_length: int | None) -> Mapping[RunsOn, int]:
        return self.layout.inputs.runs_per_sample(sequence_length, label_tokens=self.label_tokens)

    @cached_property
    def block_sets(self) -> tuple[Blocks, ...]:
        """Every set of blocks that some tensor of a layer depends on; each block alone is among them."""
        found = {part[1] for part in (*self._held, *self._used) if part != OUTER}
        return tuple(sorted(found | {(block,) for block in BLOCKS}))

    @cached_property
    def _held(self) -> dict[Any, list[str]]:
        return self._by_part(self.parameters)

    @cached_property
    def _used(self) -> dict[Any, list[str]]:
        return self._by_part(self.multiplied)

    def _by_part(self, names: Iterable[str]) -> dict[Any, list[str]]:
        """Names of each part: `OUTER`, or a layer of the parent and its blocks."""
        found: dict[Any, list[str]] = {OUTER: []}
        for name in names:
            place = self.layout.locate(name)
            inside = place.stack is not None and not self.layout.is_shared_by_first_layer(place)
            part = (place.layer, blocks_of(self.layout, place)) if inside else OUTER
            found.setdefault(part, []).append(name)
        return found

    @cached_property
    def _modules(self) -> frozenset[str]:
        """Paths below a layer of the modules that the parent has."""
        places = map(self.layout.locate, self.parameters)
        return frozenset(place.path for place in places if place.stack is not None)


def pieces_of(layout: Layout, subnet: SubnetConfig, shapes: Mapping[str, Shape]) -> Pieces:
    """What the extracted model holds of some of the parent's tensors."""
    found = Pieces()
    for name, shape in shapes.items():
        width = layout.values_at(subnet, name)
        if width is not None:
            found[name] = layout.shapes.tensor_shapes(layout.locate(name), name.rpartition(".")[2], width, shape)
    return found


def blocks_of(layout: Layout, place: ParameterLocation) -> Blocks:
    """The blocks of a layer on whose fields it depends what is left of a tensor there."""
    assert place.stack is not None
    axes = [part for axis in (*place.axes, *layout.shapes.linear_axes(place)) for part in _parts(axis)]
    fields, skips = {FIELD_OF_AXIS.get(axis) for axis in axes}, layout.family.stacks[place.stack].skips
    touched = {block for block, modules in skips.items() if is_under(place.path, modules)}
    return tuple(block for block, names in BLOCKS.items() if block in touched or fields & set(names))


def _parts(axis: Any) -> tuple[Any, ...]:
    return axis if isinstance(axis, tuple) else (axis,)


def _flow(shape: Shape) -> int:
    """Inputs and outputs of one product with a weight."""
    return shape[0] + math.prod(shape[1:])


def _numbers(pieces: Pieces) -> int:
    return sum(math.prod(shape) for shapes in pieces.values() for shape in shapes.values())

"""BlockCosts: costs of each block of each layer and of the modules outside; those of a subnetwork are their sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from predictors.costs.activation_memory import axes_of, count_kv_cache, count_live_activations
from search_spaces import Layout, SubnetConfig
from search_spaces.dimensions import BLOCK_OF_AXIS, BLOCKS, OF_INPUTS, PER_SUBNET
from search_spaces.family import RunsOn
from search_spaces.layout import OUTSIDE, ParameterLocation, is_under
from search_spaces.module_kinds import SparseAttention
from search_spaces.subnet import SIZES

Shape = tuple[int, ...]
TensorShapes = dict[str, dict[str, Shape]]
"""Name of a parameter of the parent -> its tensors in the extracted model: name in the module -> shape."""

Blocks = tuple[str, ...]
"""Blocks of a layer; the shape of a tensor depends on their fields."""

OUTSIDE_LAYERS = "outer"
"""Key of the modules outside the layers, and of those that a first layer holds for its stack."""


class BlockCost(NamedTuple):
    """Costs of a block, or of the modules outside the layers, for one sample: numbers, or arrays for many blocks.

    Attributes:
        num_parameters: Number of parameters, tied ones once.
        macs: Multiply-accumulates.
        weights: Number of elements in the weights of matrix products.
        memory_traffic: Number of elements that matrix products read and write, without their weights.
        live_activations: Largest number of activation elements that are alive at once.
        kv_cache: Number of elements in the keys and values of all tokens.
    """

    num_parameters: Any = 0
    macs: Any = 0
    weights: Any = 0
    memory_traffic: Any = 0
    live_activations: Any = 0
    kv_cache: Any = 0


@dataclass(frozen=True)
class BlockCosts:
    """Counts the costs of the blocks of any subnetwork of one parent; equal blocks are counted once.

    Attributes:
        layout: Layout of the parent.
        parameters: Name -> shape, for all parameters; tied ones once.
        matmul_weights: Name -> shape, for all weights that a forward pass uses; tied ones under each of their names.
        label_tokens: Whether the model has outputs for every token, not only for every sample.
        table_cache: Costs that a `CostTable` has counted.
    """

    layout: Layout
    parameters: Mapping[str, Shape]
    matmul_weights: Mapping[str, Shape]
    label_tokens: bool
    table_cache: dict[Any, BlockCost] = field(default_factory=dict, repr=False, compare=False)
    _cache: dict[Any, BlockCost] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, subnet: SubnetConfig, sequence_length: int | None) -> Iterator[BlockCost]:
        """Costs of all blocks of a subnetwork, and of the modules outside the layers."""
        yield self.outside_layers(subnet, sequence_length)
        for position in range(len(subnet.layers)):
            for blocks in self.block_sets:
                yield self.in_layer(subnet, position, blocks, sequence_length)

    def outside_layers(self, subnet: SubnetConfig, sequence_length: int | None) -> BlockCost:
        """Costs outside the layers; they depend on the values per subnetwork and on the most heads of each stack."""
        stacks = self.layout.kept_positions(subnet)
        widest = [max(getattr(subnet, name)[k] for k in kept) for name in OUTSIDE for kept in stacks]
        key = (sequence_length, *(getattr(subnet, name) for name in PER_SUBNET), *widest)
        return self._cached(key, lambda: self._count_outside_layers(subnet, sequence_length))

    def in_layer(self, subnet: SubnetConfig, position: int, blocks: Blocks, sequence_length: int | None) -> BlockCost:
        """Costs of the tensors of a kept layer that depend on the fields of these blocks and on the hidden size."""
        fields = [getattr(subnet, field)[position] for block in blocks for field in BLOCKS[block]]
        key = (
            sequence_length,
            blocks,
            subnet.layers[position],
            *(getattr(subnet, n) for n in (*SIZES, *OF_INPUTS)),
            *fields,
        )
        return self._cached(key, lambda: self._count_in_layer(subnet, position, blocks, sequence_length))

    def _cached(self, key: Any, count: Callable[[], BlockCost]) -> BlockCost:
        if key not in self._cache:
            self._cache[key] = count()
        return self._cache[key]

    def _count_outside_layers(self, subnet: SubnetConfig, sequence_length: int | None) -> BlockCost:
        runs, names = self._runs(subnet, sequence_length), self._parameter_names[OUTSIDE_LAYERS]
        extracted = extracted_shapes(self.layout, subnet, {name: self.parameters[name] for name in names})
        family = self.layout.family
        runs_on: dict[str, RunsOn] = dict.fromkeys([family.embedding] * bool(family.embedding), "token")
        macs = weights = traffic = largest = 0
        for name, shapes in self._matmul_shapes(subnet, OUTSIDE_LAYERS):
            module = name.removesuffix(".parametrizations.weight.original1").removesuffix(".weight")
            elements = sum(map(math.prod, shapes))
            stride = self._stride(name, module)
            of_module = {module: f"stride {stride}"} if stride else {}
            for path, position in {**family.runs_on, **runs_on, **of_module}.items():
                if f".{module}".endswith(f".{path}") and runs[position]:
                    flow = runs[position] * sum(map(_inputs_and_outputs, shapes))
                    macs, weights, traffic = macs + runs[position] * elements, weights + elements, traffic + flow
                    largest = max(largest, flow)
        if family.extra_outside_macs is not None:
            macs += family.extra_outside_macs(self.layout, runs["token"])
        live_activations = largest + self.layout.hidden_size(subnet, 0) * runs["token"]
        return BlockCost(_num_elements(extracted), macs, weights, traffic, live_activations)

    def _stride(self, name: str, module: str) -> int:
        """Pixels of an image, along a side, for each output of a convolution; 0 for any other module."""
        stride_of = self.layout.family.stride_of
        return stride_of(self.layout.sizes, module) if stride_of and len(self.matmul_weights[name]) > 1 else 0

    def _count_in_layer(
        self, subnet: SubnetConfig, position: int, blocks: Blocks, sequence_length: int | None
    ) -> BlockCost:
        layout, layer, runs = self.layout, subnet.layers[position], self._runs(subnet, sequence_length)
        names = self._parameter_names.get((layer, blocks), [])
        extracted = extracted_shapes(layout, subnet, {name: self.parameters[name] for name in names})
        macs = weights = traffic = live_activations = kv_cache = 0
        for name, shapes in self._matmul_shapes(subnet, (0 if layout.family.shared_layers else layer, blocks)):
            location = layout.locate(name)
            if layout.shapes.is_of_experts(location):
                sizes, (shape,) = layout.blueprint(subnet).layers[position].sizes, shapes
                per_token = layout.shapes.attribute_value("experts_per_token", sizes)
                times, elements = runs[layout.runs_on(location)] * per_token, math.prod(shape[1:])
                macs, weights = macs + times * elements, weights + min(times, shape[0]) * elements
                traffic += times * sum(shape[1:])
            elif len(self.matmul_weights[name]) > 1 and None not in location.axes:
                times, elements = runs[layout.runs_on(location)], sum(map(math.prod, shapes))
                macs, weights = macs + times * elements, weights + elements * bool(times)
                traffic += times * sum(map(_inputs_and_outputs, shapes))
        if len(blocks) == 1 and getattr(subnet, BLOCKS[blocks[0]][0])[position]:
            live_activations = count_live_activations(layout, subnet, position, blocks[0], runs, self._modules)
        if blocks == ("attention",):
            macs += self._attention_macs(subnet, position, runs)
            kv_cache = count_kv_cache(layout, subnet, position, runs)
        return BlockCost(_num_elements(extracted), macs, weights, traffic, live_activations, kv_cache)

    def _matmul_shapes(self, subnet: SubnetConfig, where: Any) -> Iterator[tuple[str, list[Shape]]]:
        """Names and extracted shapes of the weights of matrix products, without embedding tables."""
        names = self._weight_names.get(where, [])
        extracted = extracted_shapes(self.layout, subnet, {name: self.matmul_weights[name] for name in names})
        for name, shapes in extracted.items():
            is_table = self.layout.shapes.is_embedding(self.layout.locate(name))
            table_lookups = {"weight", "down.weight"} if is_table else ()
            yield name, [shape for key, shape in shapes.items() if key not in table_lookups]

    def _attention_macs(self, subnet: SubnetConfig, position: int, runs: Mapping[RunsOn, int]) -> int:
        """Scores and their weighted sum in one layer, of self-attention and cross-attention."""
        layout, blueprint = self.layout, self.layout.blueprint(subnet).layers[position]
        number, _ = layout.stack_of(subnet.layers[position])
        family, tokens = layout.family, runs[layout.family.stack_runs_on(number)]
        sparse = blueprint.kind(family.stacks[number].attention_module, SparseAttention)
        attended = layout.inputs.stages[number].attended if layout.inputs.stages else tokens
        queries = layout.inputs.stages[number].queries if layout.inputs.stages else tokens
        own = queries * attended if sparse is None else sparse.computed_pairs(tokens, causal=family.is_causal(number))
        cross = tokens * runs["source"] if family.stacks[number].source_modules else 0
        macs = 2 * (own + cross) * blueprint.sizes["heads"] * layout.head_dim
        extra = family.extra_macs
        return macs + (extra(layout, blueprint, tokens) if extra is not None else 0)

    # -- groups of tensors --------------------------------------------------------------------------------------------

    def _runs(self, subnet: SubnetConfig, sequence_length: int | None) -> Mapping[RunsOn, int]:
        sizes = self.layout.blueprint(subnet).outside.sizes
        return self.layout.inputs.runs_per_sample(
            sequence_length, label_tokens=self.label_tokens, image=sizes["image"], queries=sizes["queries"]
        )

    @cached_property
    def block_sets(self) -> tuple[Blocks, ...]:
        """All sets of blocks that tensors of a layer depend on, and the set of each single block."""
        used = {group[1] for group in (*self._parameter_names, *self._weight_names) if group != OUTSIDE_LAYERS}
        return tuple(sorted(used | {(block,) for block in BLOCKS}))

    @cached_property
    def _parameter_names(self) -> dict[Any, list[str]]:
        return self._names_by_group(self.parameters)

    @cached_property
    def _weight_names(self) -> dict[Any, list[str]]:
        return self._names_by_group(self.matmul_weights)

    def _names_by_group(self, names: Iterable[str]) -> dict[Any, list[str]]:
        """Groups names by `OUTSIDE_LAYERS`, or by layer of the parent and blocks."""
        names_of: dict[Any, list[str]] = {OUTSIDE_LAYERS: []}
        for name in names:
            location = self.layout.locate(name)
            is_inside = location.stack is not None and not self.layout.is_shared_by_first_layer(location)
            group = (location.layer, blocks_of_tensor(self.layout, location)) if is_inside else OUTSIDE_LAYERS
            names_of.setdefault(group, []).append(name)
        return names_of

    @cached_property
    def _modules(self) -> frozenset[str]:
        """Paths of the parent's modules, relative to a layer."""
        locations = map(self.layout.locate, self.parameters)
        return frozenset(location.path for location in locations if location.stack is not None)


def extracted_shapes(layout: Layout, subnet: SubnetConfig, shapes: Mapping[str, Shape]) -> TensorShapes:
    """Shapes of some of the parent's tensors in the extracted model; tensors that it does not have are left out."""
    extracted = TensorShapes()
    for name, shape in shapes.items():
        blueprint = layout.blueprint_at(subnet, name)
        if blueprint is not None:
            location, parameter = layout.locate(name), name.rpartition(".")[2]
            extracted[name] = layout.shapes.tensor_shapes(location, parameter, blueprint, shape)
    return extracted


def blocks_of_tensor(layout: Layout, location: ParameterLocation) -> Blocks:
    """The blocks of a layer whose fields determine the shape of a tensor."""
    assert location.stack is not None
    axes = [part for axis in (*location.axes, *layout.shapes.linear_axes(location)) for part in axes_of(axis)]
    skips = layout.family.stacks[location.stack].skips
    blocks = {BLOCK_OF_AXIS.get(axis) for axis in axes}
    blocks |= {block for block, modules in skips.items() if is_under(location.path, modules)}
    return tuple(block for block in BLOCKS if block in blocks)


def _inputs_and_outputs(shape: Shape) -> int:
    """Number of inputs and outputs of a product with a weight."""
    return shape[0] + math.prod(shape[1:])


def _num_elements(tensors: TensorShapes) -> int:
    return sum(math.prod(shape) for shapes in tensors.values() for shape in shapes.values())

"""SearchSpace: a parent, the dimensions that may vary, their choices and their scope."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, product
from random import Random
from typing import Any, Literal

from search_spaces.dimensions import (
    BLOCKS,
    DEPTHS,
    DIMENSIONS,
    NO_BLOCK,
    PER_LAYER,
    PER_SUBNET,
    WIDTH_OF,
    depth_names,
)
from search_spaces.errors import InputError, did_you_mean
from search_spaces.parameters import Parameters, fitted_sizes
from search_spaces.subnet import NUMERIC, SubnetConfig

Scope = Literal["uniform", "per-layer"]


class SearchSpace:
    """All subnetworks of a parent that a search may visit.

    With scope ``uniform``, all kept layers have the same values and the most important layers stay. With scope
    ``per-layer``, each layer has its own values, the set of kept layers is searched too, and a choice of 0 heads or 0
    neurons skips that block. Both stacks of a parent have the same choices; a layer of the narrower one that would be
    wider than the parent's is as wide as that. In a parent with more stacks, its stages, a choice is that of the
    widest one, and a layer of another keeps the same share of the parent's, rounded up.

    Args:
        parent: The full model as a subnetwork.
        scope: ``uniform`` or ``per-layer``.
        layer_order: Parent layers, most important first; the order in which a shrinking depth keeps them.
            Defaults to first to last.
        depths: Layers of each stack of the parent; by default it has one.
        choices: Dimension -> its choices, as `Dimension.to_choices` takes them; None, or no entry, where it is fixed.

    Attributes:
        choices: Dimension -> its choices, cheapest first.
        given: Dimensions that were given choices.
        stacks: Layers of each stack.

    Raises:
        InputError: If a dimension is unknown, a list of choices is empty, or a choice is not within the parent.
    """

    def __init__(
        self,
        parent: SubnetConfig,
        *,
        scope: Scope = "per-layer",
        layer_order: Sequence[int] | None = None,
        depths: Sequence[int] = (),
        **choices: Sequence[Any] | None,
    ) -> None:
        if unknown := [name for name in choices if name not in DIMENSIONS]:
            raise InputError(f"`space.{unknown[0]}` is no dimension; {did_you_mean(unknown[0], DIMENSIONS)}")
        self.parent, self.scope = parent, scope
        self.depths = tuple(depths) or (parent.num_hidden_layers,)
        ends = [sum(self.depths[: k + 1]) for k in range(len(self.depths))]
        self.stacks = tuple(range(end - depth, end) for end, depth in zip(ends, self.depths, strict=True))
        self.layer_order = tuple(layer_order) if layer_order is not None else parent.layers
        if sorted(self.layer_order) != list(parent.layers):
            raise InputError(f"`layer_order` must name each parent layer once, but got {list(self.layer_order)}.")
        self.given = {name for name, values in choices.items() if values is not None}
        if extra := sorted(self.given & set(DEPTHS) - set(self.depth_names)):
            raise InputError(
                f"`space.{extra[0]}` is for other stacks of layers, but the depths of this model are "
                f"{', '.join(self.depth_names)}; leave it out."
            )
        self.choices: dict[str, tuple[Any, ...]] = {}
        for name, full in self._parent_values().items():
            can_skip = scope == "per-layer" and WIDTH_OF.get(name) == name
            sorted_choices = DIMENSIONS[name].to_choices(choices.get(name), full, can_skip)
            if sorted_choices is not None:
                self.choices[name] = sorted_choices
        for name, width in WIDTH_OF.items():
            for value in self.choices[width]:
                DIMENSIONS[name].choices_for(value, self)  # refuses a width that no choice fits

    def _parent_values(self) -> dict[str, Any]:
        """Dimension -> the parent's value, the largest of its layers, in the order of `DIMENSIONS`."""
        values = dict(zip(self.depth_names, self.depths, strict=True)) | {
            n: getattr(self.parent, n) for n in PER_SUBNET
        }
        for name in PER_LAYER:
            of_layers = getattr(self.parent, name)
            values[name] = of_layers[0] if DIMENSIONS[name].is_categorical else max(of_layers)
        return {name: values[name] for name in DIMENSIONS if name in values}

    # -- choices ------------------------------------------------------------------------------------------------------

    def block_choices(self, block: str, layer: int | None = None) -> list[tuple[Any, ...]]:
        """Every choice for one block of a layer: values of its fields, in the order of `BLOCKS`.

        Args:
            block: ``attention`` or ``mlp``.
            layer: A parent layer; default: one as wide as the widest.
        """
        width, *others = BLOCKS[block]
        choices: list[tuple[Any, ...]] = []
        for value in self.choices[width]:
            choices += product([value], *(DIMENSIONS[name].choices_for(value, self) for name in others))
        if layer is None or self._has_equal_layers:
            return choices
        names = BLOCKS[block]
        fitted = [
            [self._in_layer(name, v, layer) for name, v in zip(names, values, strict=True)] for values in choices
        ]
        return list(dict.fromkeys(map(tuple, fitted)))

    def _in_layer(self, name: str, value: Any, layer: int) -> Any:
        """What a choice is in a parent layer; a name is as it is."""
        if name not in NUMERIC:
            return value
        of_layers = getattr(self.parent, name)
        return fitted_sizes(value, of_layers[layer], max(of_layers), shares=self.has_stages)

    @property
    def has_stages(self) -> bool:
        """Whether the stacks of the parent are stages."""
        return len(self.depths) > 2

    @cached_property
    def _has_equal_layers(self) -> bool:
        """Whether all layers of the parent are as wide; the two stacks of a parent may differ."""
        return self.parent.is_uniform

    def within_parent(self, subnet: SubnetConfig) -> SubnetConfig:
        """The subnetwork in which each choice is what it is in its layer, see the class."""
        if self._has_equal_layers:
            return subnet
        widths = {
            name: tuple(self._in_layer(name, v, k) for v, k in zip(getattr(subnet, name), subnet.layers, strict=True))
            for name in NUMERIC
        }
        return subnet.with_values(**widths)

    def choice_at(self, name: str, value: Any, layer: int) -> Any:
        """The choice that gives a parent layer a value: the value, or the next wider one where the layer ends."""
        choices = self.choices[name]
        if DIMENSIONS[name].is_categorical or (value in choices and not self.has_stages):
            return value if value in choices else choices[-1]
        return next((choice for choice in choices if self._in_layer(name, choice, layer) >= value), choices[-1])

    @property
    def layer_choices(self) -> list[tuple[Any, ...]]:
        """Every choice for one layer: values of `PER_LAYER`; a layer never skips both blocks."""
        combinations = product(*(self.block_choices(block) for block in BLOCKS))
        layers = [tuple(chain(*blocks)) for blocks in combinations if any(block[0] for block in blocks)]
        others = list(product(*(self.choices_of(name) for name in NO_BLOCK)))
        return [(*values, *more) for values in layers for more in others]

    def choices_of(self, name: str) -> tuple[Any, ...]:
        """Choices of a dimension; the value that changes nothing where it has none."""
        return self.choices.get(name) or (DIMENSIONS[name].default(vars(self.parent)),)

    def _choices_with(self, name: str, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Choices of a dimension of the subnetwork next to the values of those before it."""
        width = WIDTH_OF.get(name)
        return self.choices_of(name) if width is None else DIMENSIONS[name].choices_for(values[width], self)

    def _subnet_values(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Every combination of values of some dimensions of the subnetwork."""
        combinations: list[dict[str, Any]] = [{}]
        for name in names:
            combinations = [{**c, name: value} for c in combinations for value in self._choices_with(name, c)]
        return combinations

    @property
    def size(self) -> int:
        """Number of distinct subnetworks, exact."""
        total = len(self._subnet_values(PER_SUBNET))
        if self.scope == "uniform":
            return total * self._layer_size() * math.prod(len(self.choices[name]) for name in self.depth_names)
        for name, layers in zip(self.depth_names, self.stacks, strict=True):
            per_layer = self._layer_size(layers[0])
            total *= sum(math.comb(len(layers), depth) * per_layer**depth for depth in self.choices[name])
        return total

    def _layer_size(self, layer: int | None = None) -> int:
        """Number of distinct layers, at the place of a parent layer."""
        choices = [self.block_choices(block, layer) for block in BLOCKS]
        per_layer = math.prod(map(len, choices)) - all(values[0][0] == 0 for values in choices)
        return per_layer * math.prod(len(self.choices_of(name)) for name in NO_BLOCK)

    @property
    def subnet_fields(self) -> list[str]:
        """Dimensions of the subnetwork that have choices."""
        return [name for name in PER_SUBNET if name in self.choices]

    @property
    def layer_fields(self) -> list[str]:
        """Dimensions of a layer that are parameters of the search."""
        return [name for name in PER_LAYER if DIMENSIONS[name].is_searched(self)]

    @property
    def needs_calibration(self) -> bool:
        """Whether a subnetwork needs statistics of activations on calibration data."""
        return any(DIMENSIONS[name].needs_calibration(values) for name, values in self.choices.items())

    @property
    def fewest_layers(self) -> tuple[int, ...]:
        """The smallest depth of each stack."""
        return tuple(min(self.choices[name]) for name in self.depth_names)

    @property
    def depth_names(self) -> tuple[str, ...]:
        """Names of the depths of its stacks."""
        return depth_names(len(self.depths))

    def __contains__(self, subnet: SubnetConfig) -> bool:
        if not set(subnet.layers) <= set(self.parent.layers):
            return False
        if any(getattr(subnet, name) not in self._choices_with(name, vars(subnet)) for name in PER_SUBNET):
            return False
        depths = self.stack_depths(subnet)
        if any(n not in self.choices[name] for n, name in zip(depths, self.depth_names, strict=True)):
            return False
        for block, fields in BLOCKS.items():
            of_layers = zip(
                subnet.layers, zip(*(getattr(subnet, field) for field in fields), strict=True), strict=True
            )
            found = list(of_layers)
            for stack in self.stacks:
                if not {values for layer, values in found if layer in stack} <= set(
                    self.block_choices(block, stack[0])
                ):
                    return False
        if any(not set(getattr(subnet, name)) <= set(self.choices_of(name)) for name in NO_BLOCK):
            return False
        if self.scope == "per-layer":
            return True
        params = self.parameters
        is_uniform = (
            subnet.is_uniform if self._has_equal_layers else params.to_subnet(params.from_subnet(subnet)) == subnet
        )
        return is_uniform and subnet.layers == self.most_important_layers(depths)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the constructor that give this space."""
        open_choices = {n: v for n, v in self.choices.items() if n in self.given or not DIMENSIONS[n].depends_on}
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

    @cached_property
    def parameters(self) -> Parameters:
        """The parameters of an Optuna study over this space."""
        return Parameters(self)

    # -- points of interest ---------------------------------------------------------------------------------------

    def _uniform(self, values: dict[str, Any]) -> SubnetConfig:
        """The uniform subnetwork of these values; those that do not go with the width of their block are repaired."""
        complete = {name: values.get(name, self.choices_of(name)[-1]) for name in (*PER_LAYER, *PER_SUBNET)}
        for name, width in WIDTH_OF.items():
            complete[name] = DIMENSIONS[name].repaired(complete[name], complete[width], self)
        layers = self.most_important_layers([values[n] for n in self.depth_names])
        return self.within_parent(SubnetConfig.uniform(layers, **complete))

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
        widths |= {name: values[-1:] for name, values in widths.items() if DIMENSIONS[name].has_neutral}
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
        subnet_values: dict[str, Any] = {}
        for name in self.subnet_fields:
            subnet_values[name] = rng.choice(self._choices_with(name, subnet_values))
        return self.within_parent(SubnetConfig(tuple(layers), **subnet_values, **layer_values))

    def _sample_layer(self, rng: Random) -> dict[str, Any]:
        while True:
            values = {fields[0]: rng.choice(self.choices[fields[0]]) for fields in BLOCKS.values()}
            if any(values.values()):
                break
        for width, *others in BLOCKS.values():
            for name in (name for name in others if name in self.choices):
                values[name] = rng.choice(DIMENSIONS[name].choices_for(values[width], self))
        return values | {name: rng.choice(self.choices[name]) for name in NO_BLOCK if name in self.choices}

    def sample_mixed(self, rng: Random) -> SubnetConfig:
        """One random subnetwork for training: with probability 1/2 uniform, with the most important layers kept."""
        if rng.random() < 0.5:
            return self._uniform({name: rng.choice(values) for name, values in self._without_skips.items()})
        return self.sample(rng)

    def __iter__(self) -> Iterator[SubnetConfig]:
        """Every subnetwork of a ``uniform`` space; a ``per-layer`` one is too large to enumerate."""
        if self.scope != "uniform":
            raise InputError("only a space of scope `uniform` can be enumerated; sample a `per-layer` one.")
        of_subnet = self._subnet_values(self.subnet_fields)
        for *depths, values in product(*(self.choices[name] for name in self.depth_names), of_subnet):
            for layer in self.layer_choices:
                of_layers = dict(zip((*self.depth_names, *PER_LAYER), (*depths, *layer), strict=True))
                yield self._uniform({**of_layers, **values})


def _at_fraction(values: Sequence[int], step: int, steps: int) -> int:
    """The choice at the same fraction of ``values`` as ``step`` is of ``steps``."""
    return values[round(step * (len(values) - 1) / max(steps - 1, 1))]

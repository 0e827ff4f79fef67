"""Parameters: subnetworks of a search space as Optuna parameters, as vectors of a sampler, as features of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, reduce
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from search_spaces.dimensions import BLOCKS, DIMENSIONS, PER_LAYER, PER_SUBNET, WIDTH_OF
from search_spaces.subnet import NUMERIC, SubnetConfig
from search_spaces.subnet_batch import SubnetBatch

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

    from search_spaces.space import SearchSpace


MAX_TABLE = 1 << 16
"""Largest code that is looked up in a table: sizes are below it, codes of attention patterns are not."""


class Parameters(Mapping[str, tuple[Any, ...]]):
    """Name of each parameter of the search -> its values in ascending order; fields with one choice have none.

    A study describes a subnetwork by parameter values, a sampler by a vector: the index of each parameter's value.

    Args:
        space: The subnetworks.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        choices: dict[str, tuple[Any, ...]] = {name: space.choices[name] for name in space.subnet_fields}
        if space.scope == "uniform":
            choices |= {name: space.choices[name] for name in (*space.depth_names, *space.layer_fields)}
        else:
            for name, stack in zip(space.depth_names, space.stacks, strict=True):
                choices |= {f"layers.{i}": (False, True) for i in stack if space.choices[name] != (len(stack),)}
            choices |= {
                f"{field}.{i}": space.choices[field] for field in space.layer_fields for i in space.parent.layers
            }
        self._searched = {name: values for name, values in choices.items() if len(values) > 1}
        self._columns = {name: column for column, name in enumerate(self._searched)}

    def __getitem__(self, name: str) -> tuple[Any, ...]:
        return self._searched[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._searched)

    def __len__(self) -> int:
        return len(self._searched)

    # -- values -------------------------------------------------------------------------------------------------------

    def distributions(self) -> dict[str, BaseDistribution]:
        """The space for an Optuna study.

        Evenly spaced choices are an integer parameter, so that a sampler sees their order. Other choices, and whether
        a layer stays, are categorical.
        """
        return {name: _distribution(values) for name, values in self._searched.items()}

    def suggest(self, trial: optuna.Trial) -> SubnetConfig:
        """The subnetwork of the values that a trial suggests for every parameter."""
        return self.to_subnet({name: _suggest(trial, name, values) for name, values in self._searched.items()})

    def to_subnet(self, params: Mapping[str, Any]) -> SubnetConfig:
        """The subnetwork of parameter values, repaired as by `to_batch`.

        Missing parameters: a layer stays, any other parameter has its first choice.
        """
        complete = {
            **{name: values[-1] if values == (False, True) else values[0] for name, values in self._searched.items()},
            **params,
        }
        vector = [values.index(complete[name]) for name, values in self._searched.items()]
        return self.to_batch(np.array([vector], dtype=np.int64))[0]

    def from_subnet(self, subnet: SubnetConfig) -> dict[str, Any]:
        """Parameter values of a subnetwork; a dropped layer gets its largest values."""
        space = self.space
        values: dict[str, Any] = {name: getattr(subnet, name) for name in PER_SUBNET}
        if space.scope == "uniform":
            values |= dict(zip(space.depth_names, space.stack_depths(subnet), strict=True))
            values |= {field: self._choice(field, getattr(subnet, field)) for field in space.layer_fields}
        else:
            position = {layer: k for k, layer in enumerate(subnet.layers)}
            values |= {f"layers.{i}": i in position for i in space.parent.layers}
            for field in space.layer_fields:
                choices = space.choices[field]
                for i in space.parent.layers:
                    value = getattr(subnet, field)[position[i]] if i in position else choices[-1]
                    values[f"{field}.{i}"] = space.choice_at(field, value, i)
        return {name: values[name] for name in self._searched}

    def _choice(self, field: str, values: Sequence[Any]) -> Any:
        """The choice of a uniform subnetwork whose layers have these values; a narrow stack has lower ones."""
        is_name, of_parent = DIMENSIONS[field].is_categorical, getattr(self.space.parent, field)
        return self.space.choice_at(field, values[0] if is_name else max(values), of_parent.index(max(of_parent)))

    # -- vectors ------------------------------------------------------------------------------------------------------

    def to_batch(self, vectors: np.ndarray) -> SubnetBatch:
        """The subnetworks of vectors.

        Values of dropped layers are ignored. Invalid combinations are repaired. A set of layers whose size is no
        allowed depth gets the nearest allowed one (the larger on a tie): the most important dropped layers are added,
        or the least important kept ones removed. Key and value heads get the nearest number that the attention heads
        can share. A layer that skips both blocks gets the narrowest feed-forward block. A dimension of the subnetwork
        that depends on another one gets the nearest value that goes with it.

        Args:
            vectors: (n, parameters) index of the choice of each parameter.
        """
        kept = self._kept_layers(vectors)
        layer_values = {field: values * kept for field, values in self._layer_values(vectors).items()}
        subnet_values = {name: self._values_of(vectors, name) for name in PER_SUBNET}
        for name in (name for name in PER_SUBNET if name in WIDTH_OF):
            subnet_values[name] = self._fitted(name, subnet_values[name], self._width_rows(name, subnet_values))
        return SubnetBatch(kept, layer_values, subnet_values)

    def _values_of(self, vectors: np.ndarray, name: str) -> np.ndarray:
        """Values (n,) of a parameter, or the only value of a fixed field; names are encoded as integers."""
        field = name.partition(".")[0]
        if field == "layers":
            numbers = np.array(self._searched.get(name, (True,)))
        else:
            values = self._searched.get(name) or self.space.choices_of(field)[:1]
            numbers = np.array([DIMENSIONS[field].encode(value) for value in values])
        column = self._columns.get(name)
        return np.full(len(vectors), numbers[0]) if column is None else numbers[vectors[:, column]]

    def _kept_layers(self, vectors: np.ndarray) -> np.ndarray:
        """Which layers stay (n, parent layers)."""
        space = self.space
        kept = np.zeros((len(vectors), space.parent.num_hidden_layers), dtype=bool)
        for name, stack in zip(space.depth_names, space.stacks, strict=True):
            order = [layer for layer in space.layer_order if layer in stack]
            if space.scope == "uniform":
                rank, depth = np.arange(1, 1 + len(order)), self._values_of(vectors, name)
            else:
                stays = np.stack([self._values_of(vectors, f"layers.{layer}") for layer in order], axis=1)
                n_stay, n_go = stays.cumsum(axis=1), (~stays).cumsum(axis=1)
                rank = np.where(stays, n_stay, n_stay[:, -1:] + n_go)
                nearest = [min(space.choices[name], key=lambda d: (abs(d - n), -d)) for n in range(len(order) + 1)]
                depth = np.array(nearest)[n_stay[:, -1]]
            kept[:, order] = rank <= depth[:, None]
        return kept

    def _layer_values(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Field -> its value in each layer (n, parent layers), whether the layer stays or not."""
        choices, layers, values = self.space.choices, self.space.parent.layers, dict[str, np.ndarray]()
        for field in PER_LAYER:
            names = [field if self.space.scope == "uniform" else f"{field}.{layer}" for layer in layers]
            values[field] = np.stack([self._values_of(vectors, name) for name in names], axis=1)
        *_, last = widths = [names[0] for names in BLOCKS.values()]
        has_block = reduce(np.logical_or, (values[width] for width in widths))
        values[last] = np.where(has_block, values[last], min(width for width in choices[last] if width))
        for width, *others in BLOCKS.values():
            rows = self._width_rows(width, values)
            for field in others:
                values[field] = self._fitted(field, values[field], rows)
        most = {} if self.space.parent.is_uniform else {name: getattr(self.space.parent, name) for name in NUMERIC}
        shares = self.space.has_stages
        return values | {
            name: fitted_sizes(values[name], np.array(of), max(of), shares=shares) for name, of in most.items()
        }

    def _width_rows(self, field: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """The index, among its choices, of the width that a dimension goes with."""
        width = WIDTH_OF[field]
        return _positions(np.array(self.space.choices[width]), values[width])

    def _fitted(self, field: str, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Values of a dimension, repaired where they do not go with their width; ``rows`` is its index."""
        codes, repaired = self._repaired[field]
        if np.array_equal(repaired, np.broadcast_to(codes, repaired.shape)):
            return values
        return repaired[rows, _positions(codes, values)]

    @cached_property
    def _repaired(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Dimension -> its codes, ascending, and the code for each of its widths (rows) and codes (columns)."""
        tables = {}
        for field, width in WIDTH_OF.items():
            if field != width:
                dimension = DIMENSIONS[field]
                choices = sorted(self.space.choices_of(field), key=dimension.encode)
                rows = [[dimension.repaired(c, w, self.space) for c in choices] for w in self.space.choices[width]]
                codes = np.array([dimension.encode(choice) for choice in choices])
                tables[field] = codes, np.array([[dimension.encode(c) for c in row] for row in rows])
        return tables

    # -- features -----------------------------------------------------------------------------------------------------

    def encode(self, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """Subnetworks as features of a surrogate, all in [0, 1].

        Returns:
            (n, k x parent layers + m): whether each layer stays; then the k - 1 `layer_fields` of the space for each
            layer, 0 where it is dropped; then the m `subnet_fields`.
        """
        space = self.space
        batch = SubnetBatch.from_subnets(subnets, space.parent.num_hidden_layers)
        layers = [self._scaled(batch, field) for field in space.layer_fields]
        rest = [self._scaled(batch, name)[:, None] for name in space.subnet_fields]
        return np.concatenate([batch.kept, *layers, *rest], axis=1)

    def _scaled(self, batch: SubnetBatch, field: str) -> np.ndarray:
        """Values of a field over the parent's; of names, the index over the number of choices.

        Returns:
            (n, parent layers); (n,) for a dimension of the subnetwork.
        """
        if DIMENSIONS[field].is_categorical:
            choices = self.space.choices[field]
            return batch.category_index(field, choices) / len(choices)
        if field in batch.subnet_values:
            return batch.subnet_values[field] / getattr(self.space.parent, field)
        return batch.layer_values[field] / max(getattr(self.space.parent, field))


def _positions(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The index of each value in ascending codes, by a table where they are small: faster than a binary search."""
    if codes[-1] > MAX_TABLE:
        return np.searchsorted(codes, values)
    table = np.zeros(codes[-1] + 1, dtype=np.intp)
    table[codes] = np.arange(len(codes))
    return table[values]


def _distribution(values: tuple[Any, ...]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, IntDistribution

    step = _step(values)
    return CategoricalDistribution(values) if step is None else IntDistribution(values[0], values[-1], step=step)


def _suggest(trial: optuna.Trial, name: str, values: tuple[Any, ...]) -> Any:
    step = _step(values)
    if step is None:
        return trial.suggest_categorical(name, values)
    return trial.suggest_int(name, values[0], values[-1], step=step)


def _step(values: tuple[Any, ...]) -> int | None:
    """The step of evenly spaced integers, else None."""
    if isinstance(values[0], bool | str):
        return None
    steps = {b - a for a, b in pairwise(values)}
    return None if len(steps) > 1 else steps.pop()


def fitted_sizes(values: Any, full: Any, widest: int, *, shares: bool) -> Any:
    """What choices are in layers of other widths.

    Args:
        values: Choices: a number, or an array.
        full: The parent's width of the layers.
        widest: Its widest layer's.
        shares: Whether a layer keeps the same share of its width; else only what is wider than the parent's changes.
    """
    if shares:
        return -(-values * full // max(widest, 1))
    return np.minimum(values, full) if isinstance(values, np.ndarray) else min(values, full)

"""Parameters: the subnetworks of a search space as a study, a sampler and a surrogate write them down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from search_spaces.batch import CODES, SubnetBatch
from search_spaces.dimensions.ranks import DENSE
from search_spaces.subnet import BLOCKS, NAMED, OF_ALL, PER_LAYER, RANKS, SubnetConfig

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

    from search_spaces.space import SearchSpace

CLOSED = {"layers": (True,), "embedding_rank": (DENSE,), **{name: (default,) for name, default in NAMED.items()}}
"""Field that a space may have no choices of -> its only one then."""


class Parameters(Mapping[str, tuple[Any, ...]]):
    """Name of each open parameter -> its values in ascending order; what has one choice only is left out.

    A study names a subnetwork by values of them, a sampler by a genome: the index of each one's value, in their order.

    Args:
        space: The subnetworks.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        named: dict[str, tuple[Any, ...]] = {name: space.choices[name] for name in space.of_all}
        if space.scope == "uniform":
            named |= {name: space.choices[name] for name in (*space.depth_names, *space.fields)}
        else:
            for name, stack in zip(space.depth_names, space.stacks, strict=True):
                named |= {f"layers.{i}": (False, True) for i in stack if space.choices[name] != (len(stack),)}
            named |= {f"{field}.{i}": space.choices[field] for field in space.fields for i in space.parent.layers}
        self._open = {name: values for name, values in named.items() if len(values) > 1}
        self._columns = {name: column for column, name in enumerate(self._open)}

    def __getitem__(self, name: str) -> tuple[Any, ...]:
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    # -- values -------------------------------------------------------------------------------------------------------

    def distributions(self) -> dict[str, BaseDistribution]:
        """The space for an Optuna study.

        Evenly spaced choices become an integer parameter, so that a sampler sees their order; others, and whether a
        layer stays, are categorical.
        """
        return {name: _distribution(values) for name, values in self._open.items()}

    def suggest(self, trial: optuna.Trial) -> SubnetConfig:
        """Asks a trial for every parameter of the space; what it answers is a subnetwork."""
        return self.subnet({name: _suggest(trial, name, values) for name, values in self._open.items()})

    def subnet(self, params: Mapping[str, Any]) -> SubnetConfig:
        """The subnetwork that parameter values mean, mended as by `batch`.

        A layer that is left out of them stays, and a width that is left out is the smallest.
        """
        given = {
            **{name: values[-1] if values == (False, True) else values[0] for name, values in self._open.items()},
            **params,
        }
        genome = [values.index(given[name]) for name, values in self._open.items()]
        return self.batch(np.array([genome], dtype=np.int64))[0]

    def of(self, subnet: SubnetConfig) -> dict[str, Any]:
        """Parameter values that mean a subnetwork; a dropped layer gets its largest widths."""
        space = self.space
        values: dict[str, Any] = {name: getattr(subnet, name) for name in OF_ALL}
        if space.scope == "uniform":
            values |= dict(zip(space.depth_names, space.counts(subnet), strict=True))
            values |= {field: getattr(subnet, field)[0] for field in space.fields}
        else:
            place = {layer: k for k, layer in enumerate(subnet.layers)}
            values |= {f"layers.{i}": i in place for i in space.parent.layers}
            for field in space.fields:
                choices = space.choices[field]
                for i in space.parent.layers:
                    here = getattr(subnet, field)[place[i]] if i in place else choices[-1]
                    values[f"{field}.{i}"] = here if here in choices else choices[-1]
        return {name: values[name] for name in self._open}

    # -- genomes ------------------------------------------------------------------------------------------------------

    def batch(self, genomes: np.ndarray) -> SubnetBatch:
        """The subnetworks that genomes mean.

        Widths of dropped layers are ignored. A set of layers whose size is not an allowed depth is mended to the
        nearest allowed one (the larger on a tie): the most important dropped layers come back, or the least
        important kept ones go. So are key and value heads that do not fit, and a layer left with nothing gets the
        narrowest feed-forward block.

        Args:
            genomes: (n, parameters) index of the choice of each parameter.
        """
        kept = self._kept_by(genomes)
        widths = {field: values * kept for field, values in self._widths_by(genomes).items()}
        return SubnetBatch(kept, widths, *(self._chosen(genomes, name) for name in OF_ALL))

    def _chosen(self, genomes: np.ndarray, name: str) -> np.ndarray:
        """Values (n,) of a parameter; of one that is not open, its only one."""
        field = name.partition(".")[0]
        values = self._open.get(name) or {**CLOSED, **self.space.choices}[field][:1]
        numbers = np.array([CODES[field][0](value) for value in values] if field in NAMED else values)
        column = self._columns.get(name)
        return np.full(len(genomes), numbers[0]) if column is None else numbers[genomes[:, column]]

    def _kept_by(self, genomes: np.ndarray) -> np.ndarray:
        """Which layers stay (n, parent layers)."""
        space = self.space
        kept = np.zeros((len(genomes), space.parent.num_hidden_layers), dtype=bool)
        for name, stack in zip(space.depth_names, space.stacks, strict=True):
            order = [layer for layer in space.layer_order if layer in stack]
            if space.scope == "uniform":
                place, depth = np.arange(1, 1 + len(order)), self._chosen(genomes, name)
            else:
                wanted = np.stack([self._chosen(genomes, f"layers.{layer}") for layer in order], axis=1)
                first, then = wanted.cumsum(axis=1), (~wanted).cumsum(axis=1)
                place = np.where(wanted, first, first[:, -1:] + then)
                nearest = [min(space.choices[name], key=lambda d: (abs(d - n), -d)) for n in range(len(order) + 1)]
                depth = np.array(nearest)[first[:, -1]]
            kept[:, order] = place <= depth[:, None]
        return kept

    def _widths_by(self, genomes: np.ndarray) -> dict[str, np.ndarray]:
        """Field -> its value in each layer (n, parent layers), whether the layer stays or not."""
        choices, layers, found = self.space.choices, self.space.parent.layers, {}
        for field in PER_LAYER:
            names = [field if self.space.scope == "uniform" else f"{field}.{layer}" for layer in layers]
            found[field] = np.stack([self._chosen(genomes, name) for name in names], axis=1)
        heads = found["num_attention_heads"]
        rows, columns = (np.searchsorted(choices[f], found[f]) for f in BLOCKS["attention"][:2])
        found["num_key_value_heads"] = self._fitting_groups[rows, columns]
        found["attention"] *= heads > 0
        narrowest = min(width for width in choices["intermediate_size"] if width)
        empty = (heads == 0) & (found["intermediate_size"] == 0)
        found["intermediate_size"] = np.where(empty, narrowest, found["intermediate_size"])
        return found | {rank: found[rank] * (found[width] > 0) for rank, width in RANKS.items()}

    @cached_property
    def _fitting_groups(self) -> np.ndarray:
        """Key and value heads that stand for each choice of them (columns) beside each of attention heads (rows)."""
        heads, groups = (self.space.choices[field] for field in BLOCKS["attention"][:2])
        return np.array([[self.space.fitting_groups(h, g) for g in groups] for h in heads])

    # -- features -----------------------------------------------------------------------------------------------------

    def encode(self, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """Subnetworks as features for a surrogate, all in [0, 1].

        Returns:
            (n, k x parent layers + m): for each layer whether it stays and its k - 1 `fields` of the space, zeros
            where it is dropped. Last the m fields `of_all` layers.
        """
        space = self.space
        batch = SubnetBatch.of(subnets, space.parent.num_hidden_layers)
        widths = [self._scaled(batch, field) for field in space.fields]
        of_all = [getattr(batch, name)[:, None] / getattr(space.parent, name) for name in space.of_all]
        return np.concatenate([batch.kept, *widths, *of_all], axis=1)

    def _scaled(self, batch: SubnetBatch, field: str) -> np.ndarray:
        """Values of a field (n, parent layers) over the parent's; of a name, its place among the choices."""
        if field in NAMED:
            choices = self.space.choices[field]
            return batch.places(field, choices) / len(choices)
        return batch.widths[field] / max(getattr(self.space.parent, field))


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
    """The distance between evenly spaced integers, else None."""
    if isinstance(values[0], bool | str):
        return None
    steps = {b - a for a, b in pairwise(values)}
    return None if len(steps) > 1 else steps.pop()

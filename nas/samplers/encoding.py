"""Encoding: the parameters of an Optuna space as vectors of choice indices, and as features for surrogates."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

Params = Mapping[str, Any]
Conditions = Mapping[str, tuple[str, Collection[Any]]]
"""Parameter -> another one, and the values of it with which the first counts at all."""


class Encoding:
    """Parameters as genomes (n, D): the index of each one's choice; 0 where it does not count.

    Args:
        space: Integers (ordered) and categoricals (ordered only if all of their choices are numbers).
        conditions: Parameters that only count with certain values of another, such as the rank of a layer that may
            be dropped. Those values may be left out of a trial.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], conditions: Conditions | None = None) -> None:
        self.names = list(space)
        self.choices = [choices_of(distribution) for distribution in space.values()]
        self.cardinalities = np.array([len(choices) for choices in self.choices])
        self.ordered = np.array([_ordered(choices) for choices in self.choices])
        self._places = [{choice: i for i, choice in enumerate(choices)} for choices in self.choices]
        self._tables = [_table(choices) for choices in self.choices]
        self._conditions = [self._condition(*item) for item in _outer_first(conditions or {})]
        self._required = set(self.names) - set(conditions or {})

    def _condition(self, name: str, condition: tuple[str, Collection[Any]]) -> tuple[int, int, np.ndarray]:
        child, parent = self.names.index(name), self.names.index(condition[0])
        return child, parent, np.array([choice in condition[1] for choice in self.choices[parent]])

    def accepts(self, params: Params) -> bool:
        """Whether a trial's parameters are a point of this space."""
        return self._required <= params.keys() and all(
            params[n] in places for n, places in zip(self.names, self._places, strict=True) if n in params
        )

    def encode(self, params: Sequence[Params]) -> np.ndarray:
        """Genomes (n, D) of parameters."""
        items = list(zip(self.names, self._places, strict=True))
        rows = [[places[p[name]] if name in p else 0 for name, places in items] for p in params]
        return self.canonical(np.array(rows, dtype=np.int64).reshape(len(params), len(self.names)))

    def decode(self, genomes: np.ndarray) -> list[dict[str, Any]]:
        """Parameters of genomes (n, D)."""
        items = list(zip(self.names, self.choices, strict=True))
        return [{n: c[g] for (n, c), g in zip(items, row, strict=True)} for row in genomes.tolist()]

    def canonical(self, genomes: np.ndarray) -> np.ndarray:
        """The same genomes with 0 where a parameter does not count."""
        if not self._conditions:
            return genomes
        counts = self._counting(genomes)
        return np.where(counts, genomes, 0)

    def _counting(self, genomes: np.ndarray) -> np.ndarray:
        counts = np.ones(genomes.shape, dtype=bool)
        for child, parent, allowed in self._conditions:
            counts[:, child] = counts[:, parent] & allowed[genomes[:, parent]]
        return counts

    def features(self, genomes: np.ndarray) -> np.ndarray:
        """Features (n, d): numbers scaled to [0, 1], a column a choice otherwise; zeros where they do not count."""
        counts = self._counting(genomes)
        columns = [t[genomes[:, k]] * counts[:, k : k + 1] for k, t in enumerate(self._tables)]
        return np.concatenate(columns, axis=1)


def _ordered(choices: Sequence[Any]) -> bool:
    return all(isinstance(choice, int | float) for choice in choices)


def _table(choices: Sequence[Any]) -> np.ndarray:
    """Features (k, width) of each choice; two choices of an unordered parameter lie at distance 1."""
    if not _ordered(choices):
        return np.eye(len(choices)) / np.sqrt(2)
    values = np.array(choices, dtype=float)
    return ((values - values.min()) / (np.ptp(values) or 1.0))[:, None]


def _outer_first(conditions: Conditions) -> list[tuple[str, tuple[str, Collection[Any]]]]:
    """Conditions in an order in which what a parameter hangs on comes before it."""

    def depth(name: str) -> int:
        return 1 + depth(conditions[name][0]) if name in conditions else 0

    return sorted(conditions.items(), key=lambda item: depth(item[0]))


def choices_of(distribution: BaseDistribution) -> list[Any]:
    """The values of an integer or categorical parameter, in order."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    raise ValueError(f"`SurrogateSampler` needs integer and categorical parameters, but got {distribution}.")

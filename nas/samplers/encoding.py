"""Encoding of the parameters of an Optuna space: vectors of choice indices, and features for surrogates."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

Params = Mapping[str, Any]
Conditions = Mapping[str, tuple[str, Collection[Any]]]
"""Parameter -> another one, and the values of that one with which the parameter is active."""


class Encoding:
    """Parameters as vectors (n, D): the index of each parameter's choice; 0 where the parameter is inactive.

    Args:
        space: Integers (ordered) and categoricals (ordered only if all of their choices are numbers).
        conditions: Parameters that are active only with certain values of another, such as the rank of a layer that
            may be dropped. A trial may leave out inactive parameters.

    Attributes:
        names: The parameters.
        choices: The values of each.
        cardinalities: Number of choices of each (D,).
        ordered: Whether neighbouring choices of a parameter are similar (D,).
    """

    def __init__(self, space: Mapping[str, BaseDistribution], conditions: Conditions | None = None) -> None:
        self.names = list(space)
        self.choices = [choices_of(distribution) for distribution in space.values()]
        self.cardinalities = np.array([len(choices) for choices in self.choices])
        self.ordered = np.array([_ordered(choices) for choices in self.choices])
        self._indices = [{_key(choice): i for i, choice in enumerate(choices)} for choices in self.choices]
        self._tables = [_feature_table(choices) for choices in self.choices]
        self._conditions = [self._condition(*item) for item in _parents_first(conditions or {})]
        self._required = set(self.names) - set(conditions or {})

    def _condition(self, name: str, condition: tuple[str, Collection[Any]]) -> tuple[int, int, np.ndarray]:
        child, parent = self.names.index(name), self.names.index(condition[0])
        allowed = {_key(choice) for choice in condition[1]}
        return child, parent, np.array([_key(choice) in allowed for choice in self.choices[parent]])

    def accepts(self, params: Params) -> bool:
        """Whether a trial's parameters are a point of this space."""
        items = zip(self.names, self._indices, strict=True)
        return self._required <= params.keys() and all(
            _key(params[name]) in indices for name, indices in items if name in params
        )

    def encode(self, params: Sequence[Params]) -> np.ndarray:
        """Vectors (n, D) of parameters."""
        items = list(zip(self.names, self._indices, strict=True))
        rows = [[indices[_key(p[name])] if name in p else 0 for name, indices in items] for p in params]
        return self.canonical(np.array(rows, dtype=np.int64).reshape(len(params), len(self.names)))

    def decode(self, vectors: np.ndarray) -> list[dict[str, Any]]:
        """Parameters of vectors (n, D)."""
        items = list(zip(self.names, self.choices, strict=True))
        return [{name: choices[i] for (name, choices), i in zip(items, row, strict=True)} for row in vectors.tolist()]

    def canonical(self, vectors: np.ndarray) -> np.ndarray:
        """The same vectors with 0 for inactive parameters."""
        return np.where(self._active(vectors), vectors, 0) if self._conditions else vectors

    def _active(self, vectors: np.ndarray) -> np.ndarray:
        active = np.ones(vectors.shape, dtype=bool)
        for child, parent, allowed in self._conditions:
            active[:, child] = active[:, parent] & allowed[vectors[:, parent]]
        return active

    def features(self, vectors: np.ndarray) -> np.ndarray:
        """Features (n, d): a number scaled to [0, 1], else a column a choice; zeros for inactive parameters."""
        active = self._active(vectors)
        columns = [table[vectors[:, k]] * active[:, k : k + 1] for k, table in enumerate(self._tables)]
        return np.concatenate(columns, axis=1)


def _key(choice: Any) -> tuple[type, Any]:
    """Tells choices apart that Python takes for equal, such as ``True`` and ``1``."""
    return type(choice), choice


def _ordered(choices: Sequence[Any]) -> bool:
    return all(isinstance(choice, int | float) for choice in choices) and len({*choices}) == len(choices)


def _feature_table(choices: Sequence[Any]) -> np.ndarray:
    """Features (k, width) of each choice; the distance of two choices of an unordered parameter is 1."""
    if not _ordered(choices):
        return np.eye(len(choices)) / np.sqrt(2)
    values = np.array(choices, dtype=float)
    return ((values - values.min()) / (np.ptp(values) or 1.0))[:, None]


def _parents_first(conditions: Conditions) -> list[tuple[str, tuple[str, Collection[Any]]]]:
    """Conditions in an order in which a parameter comes after the one that it depends on."""

    def depth(name: str) -> int:
        return 1 + depth(conditions[name][0]) if name in conditions else 0

    return sorted(conditions.items(), key=lambda item: depth(item[0]))


def choices_of(distribution: BaseDistribution) -> list[Any]:
    """The values of an integer or categorical parameter, in order.

    Raises:
        ValueError: If the parameter is of another kind.
    """
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    raise ValueError(f"`SurrogateSampler` needs integer and categorical parameters, but got {distribution}.")

"""SearchSpace: a parent and the dimensions left open, with their choices and their scope."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from search_spaces.errors import InputError
from search_spaces.subnet import PER_LAYER, SubnetConfig

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

Scope = Literal["uniform", "per-layer"]


class SearchSpace:
    """All subnetworks of a parent that a search may visit.

    With scope ``uniform``, every kept layer has the same widths and the most important layers stay. With scope
    ``per-layer``, each layer has widths of its own, and which layers stay is searched too.

    Args:
        parent: The whole model as a subnetwork.
        num_hidden_layers: Allowed depths.
        num_attention_heads: Allowed head counts of a layer.
        intermediate_size: Allowed feed-forward widths of a layer.
        scope: ``uniform`` or ``per-layer``.
        layer_order: Parent layers, most important first; the order in which a shrinking depth keeps them.
            Defaults to first to last.

    Raises:
        InputError: If a list of choices is empty, or a choice is not between 1 and the parent's own value.
    """

    def __init__(
        self,
        parent: SubnetConfig,
        *,
        num_hidden_layers: Sequence[int] | None = None,
        num_attention_heads: Sequence[int] | None = None,
        intermediate_size: Sequence[int] | None = None,
        scope: Scope = "per-layer",
        layer_order: Sequence[int] | None = None,
    ) -> None:
        self.parent = parent
        self.scope = scope
        self.layer_order = tuple(layer_order) if layer_order is not None else parent.layers
        if sorted(self.layer_order) != list(parent.layers):
            raise InputError(f"`layer_order` must name each parent layer once, but got {list(self.layer_order)}.")
        self.choices: dict[str, tuple[int, ...]] = {
            "num_hidden_layers": _checked("num_hidden_layers", num_hidden_layers, parent.num_hidden_layers),
            "num_attention_heads": _checked(
                "num_attention_heads", num_attention_heads, max(parent.num_attention_heads)
            ),
            "intermediate_size": _checked("intermediate_size", intermediate_size, max(parent.intermediate_size)),
        }

    # -- the space as a whole -------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of distinct subnetworks, exact."""
        widths = math.prod(len(self.choices[field]) for field in PER_LAYER)
        depths = self.choices["num_hidden_layers"]
        if self.scope == "uniform":
            return len(depths) * widths
        return sum(math.comb(self.parent.num_hidden_layers, depth) * widths**depth for depth in depths)

    def __contains__(self, subnet: SubnetConfig) -> bool:
        if subnet.num_hidden_layers not in self.choices["num_hidden_layers"]:
            return False
        if not set(subnet.layers) <= set(self.parent.layers):
            return False
        if any(value not in self.choices[field] for field in PER_LAYER for value in getattr(subnet, field)):
            return False
        return self.scope == "per-layer" or (subnet.is_uniform and subnet.layers == self.kept(len(subnet.layers)))

    def with_layer_order(self, layer_order: Sequence[int]) -> SearchSpace:
        """The same space once the importance of the layers is known."""
        return SearchSpace(self.parent, **self.choices, scope=self.scope, layer_order=layer_order)

    def kept(self, depth: int) -> tuple[int, ...]:
        """The ``depth`` most important layers, ascending."""
        return tuple(sorted(self.layer_order[:depth]))

    # -- points of interest ---------------------------------------------------------------------------------------

    def _uniform(self, depth: int, heads: int, width: int) -> SubnetConfig:
        return SubnetConfig.uniform(self.kept(depth), num_attention_heads=heads, intermediate_size=width)

    @property
    def largest(self) -> SubnetConfig:
        """Every dimension at its largest choice."""
        return self._uniform(*(max(values) for values in self.choices.values()))

    @property
    def smallest(self) -> SubnetConfig:
        """Every dimension at its smallest choice."""
        return self._uniform(*(min(values) for values in self.choices.values()))

    def uniform_scalings(self) -> list[SubnetConfig]:
        """The baseline of uniform scaling: for each depth, heads and FFN width shrunk together, largest first.

        Heads and widths are paired at equal fractions of the way through their choices, as a model family such as
        BERT-mini, -small, -medium scales.
        """
        heads, widths = self.choices["num_attention_heads"], self.choices["intermediate_size"]
        steps = max(len(heads), len(widths))
        pairs = {(_at(heads, k, steps), _at(widths, k, steps)) for k in range(steps)}
        depths = self.choices["num_hidden_layers"]
        return [self._uniform(d, h, w) for d in reversed(depths) for h, w in sorted(pairs, reverse=True)]

    def neighbours(self, subnet: SubnetConfig) -> list[SubnetConfig]:
        """Every subnetwork one step away: one choice up or down in one place, or one layer more or less."""
        params = self.to_params(subnet)
        found: dict[str, SubnetConfig] = {}
        for name, values in self._parameter_choices().items():
            here = values.index(params[name])
            for there in (here - 1, here + 1):
                if 0 <= there < len(values):
                    near = self.from_params({**params, name: values[there]})
                    found[near.key] = near
        found.pop(subnet.key, None)
        return list(found.values())

    def sample(self, rng: Random) -> SubnetConfig:
        """One subnetwork: the depth uniform over its choices, then the layers, then each width."""
        depth = rng.choice(self.choices["num_hidden_layers"])
        if self.scope == "uniform":
            return self._uniform(depth, *(rng.choice(self.choices[field]) for field in PER_LAYER))
        layers = tuple(sorted(rng.sample(self.parent.layers, depth)))
        return SubnetConfig(layers, *(tuple(rng.choice(self.choices[f]) for _ in layers) for f in PER_LAYER))

    def sample_mixed(self, rng: Random) -> SubnetConfig:
        """One subnetwork for training: half of the time uniform in width with the most important layers kept."""
        if rng.random() < 0.5:
            return self._uniform(*(rng.choice(values) for values in self.choices.values()))
        return self.sample(rng)

    # -- parameters of a study ------------------------------------------------------------------------------------

    def _parameter_choices(self) -> dict[str, tuple[Any, ...]]:
        """Name of each open parameter -> its values in ascending order; what has one choice only is left out."""
        depths = self.choices["num_hidden_layers"]
        if self.scope == "uniform":
            named: dict[str, tuple[Any, ...]] = dict(self.choices)
        else:
            open_depth = depths != (self.parent.num_hidden_layers,)
            named = {f"layers.{i}": (False, True) for i in self.parent.layers if open_depth}
            named |= {f"{field}.{i}": self.choices[field] for field in PER_LAYER for i in self.parent.layers}
        return {name: values for name, values in named.items() if len(values) > 1}

    def distributions(self) -> dict[str, BaseDistribution]:
        """The space for an Optuna study.

        Evenly spaced choices become an integer parameter, so that a sampler sees their order; others, and whether a
        layer stays, are categorical.
        """
        return {name: _distribution(values) for name, values in self._parameter_choices().items()}

    def suggest(self, trial: optuna.Trial) -> SubnetConfig:
        """Asks a trial for every parameter of the space; what it answers is a subnetwork."""
        return self.from_params({name: _suggest(trial, name, v) for name, v in self._parameter_choices().items()})

    def from_params(self, params: dict[str, Any]) -> SubnetConfig:
        """The subnetwork that parameter values mean.

        Widths of dropped layers are ignored. A set of layers whose size is not an allowed depth is mended to the
        nearest allowed one (the larger on a tie): the most important dropped layers come back, or the least
        important kept ones go.
        """
        if self.scope == "uniform":
            return self._uniform(*(params.get(name, values[0]) for name, values in self.choices.items()))
        kept = {i for i in self.parent.layers if params.get(f"layers.{i}", True)}
        depth = min(self.choices["num_hidden_layers"], key=lambda d: (abs(d - len(kept)), -d))
        ranked = [i for i in self.layer_order if i in kept] + [i for i in self.layer_order if i not in kept]
        layers = tuple(sorted(ranked[:depth]))
        return SubnetConfig(
            layers, *(tuple(params.get(f"{f}.{i}", self.choices[f][0]) for i in layers) for f in PER_LAYER)
        )

    def to_params(self, subnet: SubnetConfig) -> dict[str, Any]:
        """Parameter values that mean a subnetwork; a dropped layer gets its largest widths."""
        if self.scope == "uniform":
            values: dict[str, Any] = {f: getattr(subnet, f)[0] for f in PER_LAYER}
            values["num_hidden_layers"] = subnet.num_hidden_layers
        else:
            place = {layer: k for k, layer in enumerate(subnet.layers)}
            values = {f"layers.{i}": i in place for i in self.parent.layers}
            for field in PER_LAYER:
                for i in self.parent.layers:
                    here = getattr(subnet, field)[place[i]] if i in place else self.choices[field][-1]
                    values[f"{field}.{i}"] = here
        return {name: values[name] for name in self._parameter_choices()}

    def encode(self, subnet: SubnetConfig) -> np.ndarray:
        """A subnetwork as features for a surrogate: (3 x parent layers,) in [0, 1], zeros where a layer is dropped."""
        out = np.zeros((1 + len(PER_LAYER), self.parent.num_hidden_layers))
        columns = list(subnet.layers)
        out[0, columns] = 1.0
        for row, field in enumerate(PER_LAYER, start=1):
            out[row, columns] = np.array(getattr(subnet, field)) / max(getattr(self.parent, field))
        return out.reshape(-1)

    def __iter__(self) -> Iterator[SubnetConfig]:
        """Every subnetwork of a ``uniform`` space (a ``per-layer`` one is too large to walk)."""
        if self.scope != "uniform":
            raise InputError("only a space of scope `uniform` can be enumerated; sample a `per-layer` one.")
        for depth in self.choices["num_hidden_layers"]:
            for heads in self.choices["num_attention_heads"]:
                for width in self.choices["intermediate_size"]:
                    yield self._uniform(depth, heads, width)


def _checked(name: str, values: Sequence[int] | None, largest: int) -> tuple[int, ...]:
    """Sorted distinct choices of one dimension; the parent's own value where none are given."""
    if values is None:
        return (largest,)
    if not values:
        raise InputError(f"`space.{name}` must hold at least one choice, but got []; leave it out to keep {largest}.")
    wrong = [v for v in values if not 1 <= v <= largest]
    if wrong:
        raise InputError(f"`space.{name}` must lie between 1 and the parent's {largest}, but got {wrong}.")
    return tuple(sorted(set(values)))


def _at(values: Sequence[int], step: int, steps: int) -> int:
    """The choice at the same fraction of the way through ``values`` as ``step`` is through ``steps``."""
    return values[round(step * (len(values) - 1) / max(steps - 1, 1))]


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
    steps = {b - a for a, b in pairwise(values)}
    return None if isinstance(values[0], bool) or len(steps) > 1 else steps.pop()

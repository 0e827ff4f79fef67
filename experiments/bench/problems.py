"""Problems of the search benchmark: synthetic spaces whose true front can be computed, and a tabulated supernet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import sha256
from itertools import combinations, product
from pathlib import Path

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from nas.fronts.pareto import hypervolume, non_dominated
from nas.samplers.nsga2 import nsga2
from search_spaces import SearchSpace, SubnetBatch, SubnetConfig

LAYER = {"heads": 4, "ffn": 6, "attention": 3, "rank": 4}
"""Choices of each parameter of a synthetic layer; `attention` is unordered."""


Observe = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Problem:
    """A space and objectives to minimise; all but the first are costs that a search may know.

    Attributes:
        name: As it stands in the table.
        distributions: The parameters.
        evaluate: Vectors (n, D), as of `nas.samplers.encoding.Encoding` -> objectives (n, m).
        reference: Reference point of the hypervolume (m,).
        front: The true front (k, m), or the best known.
        space: The search space the parameters are of, if it is one.
        observe: Vectors (n, D) -> the first objective as a search sees it (n,) and its standard errors (n,); by
            default as it is.
        fails: Vectors (n, D) -> whether an evaluation fails (n,); by default none does.
    """

    name: str
    distributions: dict[str, BaseDistribution]
    evaluate: Callable[[np.ndarray], np.ndarray]
    reference: np.ndarray
    front: np.ndarray
    space: SearchSpace | None = None
    observe: Observe | None = None
    fails: Callable[[np.ndarray], np.ndarray] = lambda vectors: np.zeros(len(vectors), dtype=bool)

    def observed(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Objectives (n, m) as a search sees them, and the standard errors of the first (n,)."""
        values = self.evaluate(vectors).copy()
        if self.observe is None:
            return values, np.zeros(len(values))
        values[:, 0], errors = self.observe(vectors)
        return values, errors

    def volume(self, values: np.ndarray) -> float:
        """Hypervolume of objectives (n, m) as a share of the best known front's."""
        return hypervolume(values, self.reference) / self.best_volume

    @cached_property
    def best_volume(self) -> float:
        """Hypervolume of the best known front."""
        return hypervolume(self.front, self.reference)


def synthetic(name: str, folder: Path) -> Problem:
    """One of the synthetic problems; its best known front is kept in a folder."""
    layers, objectives, make = SYNTHETIC[name]
    distributions: dict[str, BaseDistribution] = {}
    for i in range(layers):
        for field_name, choices in LAYER.items():
            unordered = field_name == "attention"
            distributions[f"{field_name}.{i}"] = (
                CategoricalDistribution(tuple("abc")) if unordered else IntDistribution(0, choices - 1)
            )
    evaluate = partial(_evaluate, make(layers), objectives)
    sample = evaluate(random_vectors(layers, 20_000, np.random.default_rng(0)))
    reference = sample.max(0)
    return Problem(
        name,
        distributions,
        evaluate,
        reference,
        _kept_front(folder / f"{name}.json", evaluate, layers),
    )


def random_vectors(layers: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform candidates (n, 4 x layers) as indices of choices."""
    return rng.integers(0, list(LAYER.values()) * layers, (n, len(LAYER) * layers))


Error = Callable[[np.ndarray], np.ndarray]
"""Parameters (n, layers, 4) as indices of choices -> an error (n,)."""


def _evaluate(error: Error, objectives: int, vectors: np.ndarray) -> np.ndarray:
    """Error, latency, and (with three objectives) size, of candidates (n, D)."""
    x = vectors.reshape(len(vectors), -1, len(LAYER))
    heads, ffn, attention, rank = (x[:, :, k] for k in range(4))
    width, share = 1 + ffn, (1 + rank) / 4
    rng = np.random.default_rng(7)
    slow = rng.uniform(0.7, 1.3, (x.shape[1], 3)) * [1.0, 0.7, 0.5]
    attends = (1 + heads) * slow[np.arange(x.shape[1]), attention]
    latency = (0.5 + attends + 0.6 * width * np.where(rank == 3, 0.9, 0.15 + share) + 0.05 * heads * ffn).sum(1)
    size = (0.4 * (1 + heads) + width * np.minimum(1.0, 0.1 + share)).sum(1)
    return np.stack([error(x), latency, size], axis=1)[:, :objectives]


def additive(layers: int) -> Error:
    """Falling returns of each layer's widths, with products inside a layer and between neighbours."""
    rng = np.random.default_rng(11)
    importance = rng.gamma(2.0, 0.5, (layers, 1))
    bend = rng.uniform(0.8, 2.5, (layers, 3))
    weight = rng.dirichlet([2.0, 3.0, 2.0], layers) * importance
    kind = rng.uniform(0.0, 0.6, (layers, 3)) * importance
    inner, outer = rng.normal(0.0, 1.0, layers) * importance[:, 0], rng.normal(0.0, 1.0, layers - 1)

    def error(x: np.ndarray) -> np.ndarray:
        level = x[:, :, [0, 1, 3]] / np.array([3, 5, 3])
        gain = (1 - np.exp(-bend * level)) / (1 - np.exp(-bend)) * weight
        layer = gain.sum(2) + kind[np.arange(layers), x[:, :, 2]] + inner * level[:, :, 0] * level[:, :, 1]
        total = layer.sum(1) + (outer * level[:, :-1, 1] * level[:, 1:, 1]).sum(1)
        return np.exp(-2.5 * total / importance.sum())

    return error


def interacting(layers: int) -> Error:
    """Signs of products of pairs across layers decide, and the narrowest neighbour: main effects say little."""
    rng = np.random.default_rng(13)
    pairs = rng.permutation(3 * layers).reshape(-1, 2)
    more = np.array([rng.choice(3 * layers, 2, replace=False) for _ in range(len(pairs))])
    pairs = np.concatenate([pairs, more])
    weight = rng.choice([-1.0, 1.0], len(pairs)) * rng.uniform(0.5, 1.5, len(pairs))
    kind = rng.choice([-1.0, 0.0, 1.0], (layers, 3, 3))

    def error(x: np.ndarray) -> np.ndarray:
        level = (x[:, :, [0, 1, 3]] / np.array([3, 5, 3])).reshape(len(x), -1)
        signed = 2 * level - 1
        total = (weight * signed[:, pairs[:, 0]] * signed[:, pairs[:, 1]]).sum(1)
        follows = np.roll(x[:, :, 2], 1, axis=1)
        total = total + 0.7 * kind[np.arange(layers), x[:, :, 2], follows].sum(1)
        narrow = np.minimum(level[:, 1::3], np.roll(level[:, 1::3], 1, axis=1)).sum(1)
        return 1 / (1 + np.exp(0.35 * (total + narrow)))

    return error


SYNTHETIC: dict[str, tuple[int, int, Callable[[int], Error]]] = {
    "additive-24x2": (6, 2, additive),
    "additive-48x3": (12, 3, additive),
    "interacting-24x2": (6, 2, interacting),
}
"""Name -> layers, objectives, and the error."""


def failing(region: Callable[[np.ndarray], np.ndarray], name: str, folder: Path) -> Problem:
    """The first synthetic problem, a third of whose space fails."""
    base = synthetic("additive-24x2", folder)
    layers = len(base.distributions) // len(LAYER)
    return replace(
        base,
        name=name,
        fails=region,
        front=_kept_front(folder / f"{name}.json", base.evaluate, layers, region),
    )


def exceeds_memory(vectors: np.ndarray) -> np.ndarray:
    """The third of the space that takes most of a memory that nobody tells the search: where the quality is best."""
    rng = np.random.default_rng(17)
    weights = rng.uniform(0.2, 1.0, 24) * np.tile([1.0, 1.0, 0.0, 0.5], 6)
    sample = random_vectors(6, 20_000, np.random.default_rng(0)) @ weights
    return np.asarray(vectors @ weights > np.quantile(sample, 2 / 3))


def meets_bug(vectors: np.ndarray) -> np.ndarray:
    """Two kinds of attention of one layer with wide neurons of another: two thirds of a half of the space."""
    return np.asarray((vectors[:, 4 * 3 + 2] > 0) & (vectors[:, 4 * 1 + 1] > 2))


def perplexity(name: str, folder: Path) -> Problem:
    """The first synthetic problem, whose error is seen as exp(8 x error), as a perplexity is."""
    base = synthetic("additive-24x2", folder)

    def observe(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.exp(8 * base.evaluate(vectors)[:, 0]), np.zeros(len(vectors))

    return replace(base, name=name, observe=observe)


def noisy(name: str, folder: Path) -> Problem:
    """The first synthetic problem, whose error is that on 300 examples, the same for the same candidate."""
    base = synthetic("additive-24x2", folder)

    def observe(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        true = np.clip(base.evaluate(vectors)[:, 0], 0.0, 1.0)
        seeds = [int.from_bytes(sha256(row.tobytes()).digest()[:4]) for row in vectors.astype(np.int64)]
        drawn = [np.random.default_rng(seed).binomial(300, p) / 300 for seed, p in zip(seeds, true, strict=True)]
        return np.array(drawn), np.sqrt(np.maximum(true * (1 - true), 0.01) / 300)

    return replace(base, name=name, observe=observe)


def _kept_front(
    path: Path,
    evaluate: Callable[[np.ndarray], np.ndarray],
    layers: int,
    fails: Callable[[np.ndarray], np.ndarray] = lambda vectors: np.zeros(len(vectors), dtype=bool),
) -> np.ndarray:
    """The best known front: three long runs of NSGA-II on the true objectives, kept in a file."""
    if not path.exists():
        fronts = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            start = random_vectors(layers, 200, rng)
            cardinalities = np.array(list(LAYER.values()) * layers)
            _, costs, failed = nsga2(
                lambda vectors: (evaluate(vectors), fails(vectors).astype(float)),
                cardinalities,
                start=start,
                population=200,
                generations=600,
                rng=rng,
            )
            costs = costs[failed <= 0]
            fronts.append(costs[non_dominated(costs)])
        costs = np.unique(np.concatenate(fronts), axis=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(costs[non_dominated(costs)].tolist()))
    return np.array(json.loads(path.read_text()))


def digits_vit(folder: Path) -> Problem:
    """Loss on real digits against multiply-accumulates: every subnetwork of a trained supernet, from its table.

    Raises:
        FileNotFoundError: If the folder lacks the table that ``digits_vit.py`` writes.
    """
    table = json.loads((folder / "digits-vit.json").read_text())
    space = SearchSpace(**{**table["space"], "parent": SubnetConfig.from_dict(table["space"]["parent"])})
    every = SubnetBatch.from_subnets(list(subnets(space)), space.parent.num_hidden_layers)
    values = np.array([table["rows"][subnet.key] for subnet in every])
    parameters, rows = space.parameters, dict(zip(every.row_keys(), values, strict=True))
    return Problem(
        "digits-vit",
        parameters.distributions(),
        lambda vectors: np.array([rows[key] for key in parameters.to_batch(vectors).row_keys()]),
        reference=values.max(0),
        front=values[non_dominated(values)],
        space=space,
    )


def subnets(space: SearchSpace) -> Iterator[SubnetConfig]:
    """Every subnetwork of a per-layer space of heads and neurons."""
    fields = ("num_attention_heads", "intermediate_size")
    for depth in space.choices["num_hidden_layers"]:
        for layers in combinations(space.parent.layers, depth):
            kept = {f"layers.{i}": i in layers for i in space.parent.layers}
            names = [f"{field}.{i}" for field in fields for i in layers]
            for values in product(*(space.choices[name.partition(".")[0]] for name in names)):
                yield space.parameters.to_subnet({**kept, **dict(zip(names, values, strict=True))})


PROBLEMS: dict[str, Callable[[Path], Problem]] = {
    **{name: partial(synthetic, name) for name in SYNTHETIC},
    "digits-vit": digits_vit,
    "failing-memory": partial(failing, exceeds_memory, "failing-memory"),
    "failing-bug": partial(failing, meets_bug, "failing-bug"),
    "perplexity": partial(perplexity, "perplexity"),
    "noisy": partial(noisy, "noisy"),
}
"""Every problem of the benchmark; the folder caches what is slow to compute."""

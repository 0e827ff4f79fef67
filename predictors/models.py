"""Latency models: the features of subnetworks they read, and the regressions to choose among."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from predictors.prior_process import OtherDevices, PriorProcess
from predictors.regressions import LatencyModel, LogGaussianProcess, Network, Products
from predictors.work import RANK_OF, WORK, work, work_names
from search_spaces import SearchSpace, SubnetBatch, SubnetConfig
from search_spaces.space import DEPTHS
from search_spaces.subnet import DENSE, WIDTHS

SMOOTHNESS = 0.05
BLOCK_WIDTHS = tuple(RANK_OF)
HIDDEN = "hidden_size*"
"""Begins the name of a column that is multiplied by the hidden size."""


def feature_names(space: SearchSpace) -> tuple[str, ...]:
    """Columns of `features`.

    For each stack its depth, the sum of each width over its layers, then each step between two choices of a width, one
    for each rank that the block may have; then the rank of the embeddings and each choice of it, where that is open;
    and all of them again times the hidden size, where that is open. Last, the columns of `work`.
    """
    names: list[str] = []
    for stack, depth in enumerate(DEPTHS[: len(space.stacks)]):
        fields = [f"{'decoder ' * stack}{field}" for field in space.fields]
        steps = [
            f"{name}{f'@{rank}' * bool(rank)}:{low}-{high}"
            for name, f in zip(fields, space.fields, strict=True)
            if f != "bits"
            for rank in _ranks(space, f)
            for low, high in pairwise(space.choices[f])
        ]
        sums = [name for name in fields if not name.endswith("bits")]
        kinds = [f"{'decoder ' * stack}bits*{of}:{kind}" for kind in _kinds(space) for of in ("layers", *BLOCK_WIDTHS)]
        names += [depth, *sums, *steps, *kinds]
    thin = _thin_tables(space)
    names += ["embedding_rank"] * bool(thin) + [f"embedding_rank:{rank}" for rank in thin]
    if len(space.choices["hidden_size"]) > 1:
        names += [f"{HIDDEN}{name}" for name in names]
    return (*names, *work_names(space))


def features(space: SearchSpace, subnets: Sequence[SubnetConfig]) -> np.ndarray:
    """What latency depends on; which layers are kept does not matter, only how many and how wide.

    A step's column says how far the layers climb it, summed over layers: a latency that is any piecewise linear
    function of a layer's width, with knots at the choices, is a weighted sum of these columns. Attention patterns are
    counted by their place in the order of cost, times the heads that attend by them; of each kind of bits, the layers
    in it are, and what all of them together have of each width.

    Returns:
        (subnets, len(feature_names(space))) floats; widths as fractions of the largest choice. Rows lie together, as
        in a table read back from a file: sums, and so fits, are then the same to the last bit.
    """
    batch = SubnetBatch.of(subnets, space.parent.num_hidden_layers)
    columns: list[np.ndarray] = []
    for stack in space.stacks:
        kept, sums, climbs = batch.kept[:, stack].T, list[np.ndarray](), list[np.ndarray]()
        widths = {field: np.ascontiguousarray(batch.widths[field][:, stack].T) for field in WIDTHS}
        for field in (field for field in space.fields if field != "bits"):
            steps = list(pairwise(space.choices[field]))
            if field == "attention":
                heads = widths["num_attention_heads"] / max(space.choices["num_attention_heads"])
                place = batch.places(field, space.choices[field])[:, stack].T
                sums.append((heads * place).sum(axis=0))
                climbs += [(heads * (place > k)).sum(axis=0) for k in range(1, len(steps) + 1)]
                continue
            largest, values = max(space.choices[field]), widths[field]
            sums.append(values.sum(axis=0) / largest)
            ends = [-np.inf, *space.choices[field][1:-1], np.inf]
            climbed = [
                np.clip(values, *between) - low for (low, _), between in zip(steps, pairwise(ends), strict=False)
            ]
            for rank in _ranks(space, field):
                here = kept if rank is None else widths[RANK_OF[field]] == rank
                climbs += [(climb * here).sum(axis=0) / largest for climb in climbed]
        for number, _ in enumerate(_kinds(space), 1):
            here = (batch.places("bits", _kinds(space)) == number)[:, stack].T
            climbs.append(here.sum(axis=0))
            for width in BLOCK_WIDTHS:
                climbs.append((widths[width] * here).sum(axis=0) / max(space.choices[width]))
        columns += [kept.sum(axis=0), *sums, *climbs]
    percent, thin = batch.embedding_rank, _thin_tables(space)
    columns += [np.where(percent < DENSE, percent / DENSE, 0.0)] * bool(thin)
    columns += [np.equal(percent, choice) for choice in thin]
    table, of_work = np.stack(columns, dtype=float), work(space, batch).T
    if len(space.choices["hidden_size"]) == 1:
        return np.ascontiguousarray(np.concatenate([table, of_work]).T)
    hidden = batch.hidden_size / max(space.choices["hidden_size"])
    return np.ascontiguousarray(np.concatenate([table, table * hidden, of_work]).T)


def _kinds(space: SearchSpace) -> Sequence[str]:
    """The kinds of bits that layers may be in, where that is open."""
    return space.choices["bits"] if "bits" in space.fields else ()


def _thin_tables(space: SearchSpace) -> Sequence[int]:
    """The ranks with which embeddings take a product more, in percent, where that is open."""
    return [rank for rank in space.parameters.get("embedding_rank", ()) if rank < DENSE]


def _ranks(space: SearchSpace, field: str) -> Sequence[int | None]:
    """The ranks under which a width costs differently; None where that does not depend on a rank."""
    return space.choices[RANK_OF[field]] if RANK_OF.get(field) in space.fields else (None,)


class LeastSquares:
    """A weighted sum of columns plus a constant, with the least squared *relative* error.

    Args:
        columns: Which features it reads.
        alike: Pairs of positions in ``columns`` whose weights are drawn together, as in a penalised spline.
        non_negative: Whether no weight may be below zero, so that nothing gets faster by being added.
    """

    def __init__(
        self, columns: Sequence[int], *, alike: Sequence[tuple[int, int]] = (), non_negative: bool = False
    ) -> None:
        self.columns, self.alike, self.non_negative = list(columns), alike, non_negative
        self.weights = np.zeros(1 + len(self.columns))

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> LeastSquares:
        """Solves for the weights; a little ridge keeps columns that never vary from blowing up."""
        from scipy.optimize import nnls

        design = self._design(features)
        scale = np.maximum(np.abs(design / latency_ms[:, None]).max(axis=0), 1e-12)
        rows = [design / latency_ms[:, None], np.diag(1e-4 * scale)]
        for a, b in self.alike:
            row = np.zeros((1, design.shape[1]))
            row[0, [1 + a, 1 + b]] = SMOOTHNESS * scale[[1 + a, 1 + b]].max() * np.array([1.0, -1.0])
            rows.append(row)
        matrix = np.concatenate(rows)
        target = np.zeros(len(matrix))
        target[: len(latency_ms)] = 1.0
        solve = nnls if self.non_negative else np.linalg.lstsq
        self.weights = solve(matrix / scale, target)[0] / scale
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds, above zero."""
        return np.maximum(self._design(features) @ self.weights, 1e-6)

    def _design(self, features: np.ndarray) -> np.ndarray:
        return np.concatenate([np.ones((len(features), 1)), features[:, self.columns]], axis=1)


class GradientBoosting:
    """Boosted trees on the logarithm of the latency (Friedman, 2001)."""

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> GradientBoosting:
        """Fits (n, d) features to (n,) latencies."""
        from sklearn.ensemble import GradientBoostingRegressor

        self.trees = GradientBoostingRegressor(n_estimators=200, learning_rate=0.05, max_depth=3, random_state=0)
        self.trees.fit(features, np.log(latency_ms))
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds."""
        return np.exp(self.trees.predict(features)) if len(features) else np.zeros(0)


def _additive(names: Sequence[str]) -> LatencyModel:
    """t = t0 + sum over layers of f_heads(heads) + f_ffn(width), both f monotone and piecewise linear.

    Of columns that are not those of a space, a weighted sum in which nothing gets faster by growing.
    """
    if not any(":" in name for name in names):
        return LeastSquares(range(len(names)), non_negative=True)
    steps = [":" in name and not name.startswith(WORK) for name in names]
    columns = [i for i, name in enumerate(names) if steps[i] or name.removeprefix(HIDDEN) in DEPTHS]
    fields = [names[i].partition(":")[0] for i in columns]
    alike = [(i, i + 1) for i in range(len(columns) - 1) if fields[i] == fields[i + 1]]
    return LeastSquares(columns, alike=alike, non_negative=True)


def _work(names: Sequence[str]) -> LatencyModel:
    """A weighted sum of the columns of `work`; of columns that are not those of a space, of all."""
    columns = [i for i, name in enumerate(names) if name.startswith(WORK)]
    return LeastSquares(columns or range(len(names)), non_negative=True)


MODELS: dict[str, Callable[[Sequence[str]], LatencyModel]] = {
    "additive": _additive,
    "work": _work,
    "linear": lambda names: LeastSquares([i for i, name in enumerate(names) if ":" not in name]),
    "products": lambda names: Products(),
    "robust-products": lambda names: Products(robust=True),
    "gradient-boosting": lambda names: GradientBoosting(),
    "gaussian-process": lambda names: LogGaussianProcess(),
    "network": lambda names: Network(),
}
"""Name -> model for columns of these names; `LatencyPredictor.fit` chooses among them."""

PRIOR_MODELS: dict[str, Callable[[OtherDevices], LatencyModel]] = {"prior-process": PriorProcess}
"""Name -> model that starts from what other devices take; `LatencyPredictor.fit` adds them where there are any."""


def depth_only(features: np.ndarray) -> np.ndarray:
    """The column of layers of (n, d) features of a space."""
    return features[:, :1]

"""Latency models: the features of subnetworks they read, and the regressions to choose among."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from predictors.latency.features import HIDDEN
from predictors.latency.regressions import LatencyModel, LogGaussianProcess, Network, Products
from predictors.latency.transfer import OtherDevices, PriorProcess
from predictors.latency.work import WORK
from search_spaces.space import DEPTHS

SMOOTHNESS = 0.05


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

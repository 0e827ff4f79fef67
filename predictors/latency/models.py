"""Latency models: the registry of regressions that a latency predictor chooses from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from predictors.latency.features import HIDDEN_PREFIX
from predictors.latency.regressions import LatencyModel, LogGaussianProcess, MLPEnsemble, PolynomialRidge
from predictors.latency.transfer import ScaledPrior, SourceDevices, TransferGP
from predictors.latency.work_features import WORK_PREFIX
from search_spaces.space import DEPTHS

SMOOTHNESS = 0.05
"""Weight of the penalty on the difference between the weights of two neighbouring columns."""


class LeastSquares:
    """A weighted sum of columns plus a constant that minimises the squared *relative* error.

    Args:
        columns: The features that it uses.
        smooth_pairs: Pairs of positions in ``columns`` whose weights should be similar, as in a penalised spline.
        non_negative: Whether weights must be at least zero, so that a larger model is never predicted to be faster.
    """

    def __init__(
        self, columns: Sequence[int], *, smooth_pairs: Sequence[tuple[int, int]] = (), non_negative: bool = False
    ) -> None:
        self.columns, self.smooth_pairs, self.non_negative = list(columns), smooth_pairs, non_negative
        self.weights = np.zeros(1 + len(self.columns))

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> LeastSquares:
        """Fits the weights, with a small ridge penalty for constant columns."""
        from scipy.optimize import nnls

        design = self._design(features)
        scale = np.maximum(np.abs(design / latency_ms[:, None]).max(axis=0), 1e-12)
        rows = [design / latency_ms[:, None], np.diag(1e-4 * scale)]
        for a, b in self.smooth_pairs:
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

    For columns that are not those of a search space: a weighted sum with weights of at least zero.
    """
    if not any(":" in name for name in names):
        return LeastSquares(range(len(names)), non_negative=True)
    is_step = [":" in name and not name.startswith(WORK_PREFIX) for name in names]
    columns = [i for i, name in enumerate(names) if is_step[i] or name.removeprefix(HIDDEN_PREFIX) in DEPTHS]
    fields = [names[i].partition(":")[0] for i in columns]
    smooth_pairs = [(i, i + 1) for i in range(len(columns) - 1) if fields[i] == fields[i + 1]]
    return LeastSquares(columns, smooth_pairs=smooth_pairs, non_negative=True)


def _work_features(names: Sequence[str]) -> LatencyModel:
    """A weighted sum of the columns of `work_features`."""
    columns = [i for i, name in enumerate(names) if name.startswith(WORK_PREFIX)]
    return LeastSquares(columns, non_negative=True)


MODELS: dict[str, Callable[[Sequence[str]], LatencyModel]] = {
    "additive": _additive,
    "work": _work_features,
    "linear": lambda names: LeastSquares([i for i, name in enumerate(names) if ":" not in name]),
    "products": lambda names: PolynomialRidge(),
    "robust-products": lambda names: PolynomialRidge(robust=True),
    "gradient-boosting": lambda names: GradientBoosting(),
    "gaussian-process": lambda names: LogGaussianProcess(),
    "network": lambda names: MLPEnsemble(),
}
"""Name -> function of the column names that returns a model; `LatencyPredictor.fit` chooses among them."""


def models_for(names: Sequence[str]) -> dict[str, Callable[[Sequence[str]], LatencyModel]]:
    """The models of these columns; ``work`` needs those of a search space, of any others it would be ``additive``."""
    has_work = any(name.startswith(WORK_PREFIX) for name in names)
    return {name: make for name, make in MODELS.items() if has_work or name != "work"}


PRIOR_MODELS: dict[str, Callable[[SourceDevices], LatencyModel]] = {
    "prior-process": TransferGP,
    "scaled-prior": ScaledPrior,
}
"""Name -> function of source devices that returns a model; `LatencyPredictor.fit` adds them if there is a prior."""

"""Regressions for few measurements: polynomial ridge, power law, Gaussian process, small networks, and ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from predictors.gaussian_process import GaussianProcess
from predictors.latency.robust import ITERATIONS, row_weights

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidate penalties of a ridge, for standardised features and divided by their number."""

MAX_PRODUCT_FEATURES = 20
"""With more features than this, no products are added."""


class LatencyModel(Protocol):
    """A regression from features to milliseconds."""

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> LatencyModel:
        """Fits (n, d) features to (n,) latencies and returns itself."""
        ...

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds."""
        ...


class Scaler:
    """Standardises features by mean and standard deviation; constant columns become zeros."""

    def __init__(self, features: np.ndarray) -> None:
        self.centre, spread = features.mean(axis=0), features.std(axis=0)
        varies = spread > 1e-12 * np.abs(self.centre) + 1e-300
        self.scale = np.where(varies, 1 / np.where(varies, spread, 1.0), 0.0)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return (features - self.centre) * self.scale


def ridge(design: np.ndarray, target: np.ndarray, penalty: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights of a ridge regression, and its leave-one-out squared error.

    Args:
        design: (n, k).
        target: (n,).
        penalty: (k,) penalties of the weights; 0 for none.
    """
    solved = np.linalg.solve(design.T @ design + np.diag(penalty + 1e-9), design.T)
    weights = solved @ target
    leverage = np.minimum(np.einsum("ij,ji->i", design, solved), 0.95)
    return weights, float(np.mean(((target - design @ weights) / (1 - leverage)) ** 2))


def polynomial_features(scaled: np.ndarray) -> np.ndarray:
    """Scaled features (n, d) and the products of all pairs of them; more than 20 features are returned as they are."""
    d = scaled.shape[1]
    if d > MAX_PRODUCT_FEATURES:
        return scaled
    first, second = np.triu_indices(d)
    return np.concatenate([scaled, scaled[:, first] * scaled[:, second]], axis=1)


def _fit_ridge(design: np.ndarray, target: np.ndarray, penalties: Sequence[float] = PENALTIES) -> np.ndarray:
    """Weights of the ridge with the least leave-one-out error; the first column, the constant, has no penalty."""
    size, fits = np.sqrt((design**2).sum(axis=0)[1:].mean()), []
    for strength in penalties:
        penalty = np.full(design.shape[1], strength * size**2)
        penalty[0] = 0.0
        fits.append(ridge(design, target, penalty))
    return min(fits, key=lambda fit: fit[1])[0]


class PolynomialRidge:
    """A weighted sum of features and their products that minimises the squared relative error.

    The penalty is the one with the least leave-one-out error.

    Args:
        robust: Whether outliers get little weight; about a hundred measurements are needed to recognise them.
    """

    def __init__(self, *, robust: bool = False) -> None:
        self.iterations = ITERATIONS if robust else 1

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> PolynomialRidge:
        """Fits (n, d) features to (n,) latencies."""
        self._scaler = Scaler(features)
        self._product_scaler = Scaler(polynomial_features(self._scaler(features)))
        design, counts = self._design(features) / latency_ms[:, None], np.ones(len(features))
        for _ in range(self.iterations):
            self._weights = _fit_ridge(design * np.sqrt(counts)[:, None], np.sqrt(counts))
            counts = row_weights(1 - design @ self._weights)
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds, above zero."""
        return np.maximum(self._design(features) @ self._weights, 1e-9)

    def _design(self, features: np.ndarray) -> np.ndarray:
        columns = self._product_scaler(polynomial_features(self._scaler(features)))
        return np.concatenate([np.ones((len(features), 1)), columns], axis=1)


class PowerLaw:
    """A product of powers of the positive features and of exponentials of the others.

    It is coarse, but extrapolates best to models that are far larger or smaller than those it was fitted on.
    """

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> PowerLaw:
        """Fits (n, d) features to (n,) latencies."""
        self._positive = (features > 0).all(axis=0)
        self._scaler = Scaler(self._log_features(features))
        self._weights = _fit_ridge(self._design(features), np.log(latency_ms), (1e-6, *PENALTIES))
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds."""
        return np.exp(np.clip(self._design(features) @ self._weights, -50, 50))

    def _design(self, features: np.ndarray) -> np.ndarray:
        return np.concatenate([np.ones((len(features), 1)), self._scaler(self._log_features(features))], axis=1)

    def _log_features(self, features: np.ndarray) -> np.ndarray:
        return np.where(self._positive, np.log(np.maximum(features, 1e-12)), features)


class LogGaussianProcess:
    """A Gaussian process on the logarithm of the latency, with one relevance per feature.

    The relevances are fitted on at most the first 200 measurements, the process on at most the first 2,000.
    """

    max_relevance_rows, max_rows = 200, 2000

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> LogGaussianProcess:
        """Fits (n, d) features to (n,) latencies."""
        self._scaler = Scaler(features)
        scaled, target = self._scaler(features)[: self.max_rows], np.log(latency_ms)[: self.max_rows]
        self._process = GaussianProcess().fit(scaled[: self.max_relevance_rows], target[: self.max_relevance_rows])
        if len(scaled) > self.max_relevance_rows:
            self._process.update(scaled, target)
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds."""
        means = [self._process.mean(chunk) for chunk in _chunks(self._scaler(features))]
        return np.exp(np.concatenate(means)) if means else np.zeros(0)


def _chunks(features: np.ndarray, rows: int = 10_000) -> list[np.ndarray]:
    return [features[start : start + rows] for start in range(0, len(features), rows)]


class MLPEnsemble:
    """The mean of three small neural networks with one hidden layer, on the logarithm of the latency."""

    hidden, members, decay = 16, 3, 1e-2

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> MLPEnsemble:
        """Fits (n, d) features to (n,) latencies."""
        import warnings

        from sklearn.neural_network import MLPRegressor

        self._scaler, target = Scaler(features), np.log(latency_ms)
        self._mean, self._std = target.mean(), max(float(target.std()), 1e-9)
        options = {"hidden_layer_sizes": (self.hidden,), "activation": "tanh", "solver": "lbfgs", "alpha": self.decay}
        networks = [MLPRegressor(**options, max_iter=200, random_state=seed) for seed in range(self.members)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            standard = (target - self._mean) / self._std
            self._networks = [network.fit(self._scaler(features), standard) for network in networks]
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds."""
        if not len(features):
            return np.zeros(0)
        scaled = self._scaler(features)
        mean = np.mean([network.predict(scaled) for network in self._networks], axis=0)
        return np.exp(np.clip(mean * self._std + self._mean, -50, 50))


class WeightedEnsemble:
    """The weighted geometric mean of several models."""

    def __init__(self, models: Sequence[LatencyModel], weights: Sequence[float]) -> None:
        self.models, self.weights = models, weights

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> WeightedEnsemble:
        """Fits each model to (n, d) features and (n,) latencies."""
        for model in self.models:
            model.fit(features, latency_ms)
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds."""
        return geometric_mean([model.predict(features) for model in self.models], self.weights)


def geometric_mean(values: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """The weighted geometric mean of arrays of one shape."""
    return np.exp(np.average(np.log(values), axis=0, weights=weights))

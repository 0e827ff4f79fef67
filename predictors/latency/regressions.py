"""Regressions for few measurements: ridge with products, a Gaussian process, a small network, and their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from predictors.gaussian_process import GaussianProcess
from predictors.latency.robust import ROUNDS, row_weights

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Strengths of a ridge to choose among; features are standardised and their number divided out."""

MOST_PRODUCTS = 20
"""Features beyond which no products are formed."""


class LatencyModel(Protocol):
    """A regression from features to milliseconds."""

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> LatencyModel:
        """Fits (n, d) features to (n,) latencies and returns itself."""
        ...

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds."""
        ...


class Scaler:
    """Features in units of their own spread; columns that never vary become zeros."""

    def __init__(self, features: np.ndarray) -> None:
        self.centre, spread = features.mean(axis=0), features.std(axis=0)
        varies = spread > 1e-12 * np.abs(self.centre) + 1e-300
        self.scale = np.where(varies, 1 / np.where(varies, spread, 1.0), 0.0)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return (features - self.centre) * self.scale


def ridge(design: np.ndarray, target: np.ndarray, penalty: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights of a ridge regression, and its squared error when each row in turn is left out.

    Args:
        design: (n, k).
        target: (n,).
        penalty: (k,) of each weight; 0 for none.
    """
    solved = np.linalg.solve(design.T @ design + np.diag(penalty + 1e-9), design.T)
    weights = solved @ target
    leverage = np.minimum(np.einsum("ij,ji->i", design, solved), 0.95)
    return weights, float(np.mean(((target - design @ weights) / (1 - leverage)) ** 2))


def products(scaled: np.ndarray) -> np.ndarray:
    """Features and, unless there are many, their products."""
    d = scaled.shape[1]
    if d > MOST_PRODUCTS:
        return scaled
    first, second = np.triu_indices(d)
    return np.concatenate([scaled, scaled[:, first] * scaled[:, second]], axis=1)


def _least_error(design: np.ndarray, target: np.ndarray, penalties: Sequence[float] = PENALTIES) -> np.ndarray:
    """Weights of the ridge, its first column free, with the least error when each row in turn is left out."""
    size, fits = np.sqrt((design**2).sum(axis=0)[1:].mean()), []
    for strength in penalties:
        penalty = np.full(design.shape[1], strength * size**2)
        penalty[0] = 0.0
        fits.append(ridge(design, target, penalty))
    return min(fits, key=lambda fit: fit[1])[0]


class Products:
    """A weighted sum of features and their products, with the least squared relative error.

    The strength of the ridge is the one with the least error when each measurement in turn is left out.

    Args:
        robust: Whether measurements that are far off count for little; it takes about a hundred to tell which.
    """

    def __init__(self, *, robust: bool = False) -> None:
        self.rounds = ROUNDS if robust else 1

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> Products:
        """Fits (n, d) features to (n,) latencies."""
        self._scaler = Scaler(features)
        self._spread = Scaler(products(self._scaler(features)))
        design, counts = self._design(features) / latency_ms[:, None], np.ones(len(features))
        for _ in range(self.rounds):
            self._weights = _least_error(design * np.sqrt(counts)[:, None], np.sqrt(counts))
            counts = row_weights(1 - design @ self._weights)
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds, above zero."""
        return np.maximum(self._design(features) @ self._weights, 1e-9)

    def _design(self, features: np.ndarray) -> np.ndarray:
        spread = self._spread(products(self._scaler(features)))
        return np.concatenate([np.ones((len(features), 1)), spread], axis=1)


class PowerLaw:
    """A product of powers of the features, those that are not above zero everywhere to the base of a constant.

    It says little of the finer shape, and most of models that are far larger or smaller than any it was fitted on.
    """

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> PowerLaw:
        """Fits (n, d) features to (n,) latencies."""
        self._positive = (features > 0).all(axis=0)
        self._scaler = Scaler(self._logarithms(features))
        self._weights = _least_error(self._design(features), np.log(latency_ms), (1e-6, *PENALTIES))
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds."""
        return np.exp(np.clip(self._design(features) @ self._weights, -50, 50))

    def _design(self, features: np.ndarray) -> np.ndarray:
        return np.concatenate([np.ones((len(features), 1)), self._scaler(self._logarithms(features))], axis=1)

    def _logarithms(self, features: np.ndarray) -> np.ndarray:
        return np.where(self._positive, np.log(np.maximum(features, 1e-12)), features)


class LogGaussianProcess:
    """A Gaussian process on the logarithm of the latency, with a relevance for each feature.

    Of many measurements, the first 200 decide on the relevances, and the first 2,000 are conditioned on.
    """

    relevant, most = 200, 2000

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> LogGaussianProcess:
        """Fits (n, d) features to (n,) latencies."""
        self._scaler = Scaler(features)
        scaled, target = self._scaler(features)[: self.most], np.log(latency_ms)[: self.most]
        self._process = GaussianProcess().fit(scaled[: self.relevant], target[: self.relevant])
        if len(scaled) > self.relevant:
            self._process.update(scaled, target)
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds."""
        parts = [self._process.mean(part) for part in _parts(self._scaler(features))]
        return np.exp(np.concatenate(parts)) if parts else np.zeros(0)


def _parts(features: np.ndarray, rows: int = 10_000) -> list[np.ndarray]:
    return [features[start : start + rows] for start in range(0, len(features), rows)]


class Network:
    """The mean of small networks with one hidden layer, on the logarithm of the latency."""

    hidden, members, decay = 16, 3, 1e-2

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> Network:
        """Fits (n, d) features to (n,) latencies."""
        import warnings

        from sklearn.neural_network import MLPRegressor

        self._scaler, target = Scaler(features), np.log(latency_ms)
        self._centre, self._spread = target.mean(), max(float(target.std()), 1e-9)
        kind = {"hidden_layer_sizes": (self.hidden,), "activation": "tanh", "solver": "lbfgs", "alpha": self.decay}
        networks = [MLPRegressor(**kind, max_iter=200, random_state=seed) for seed in range(self.members)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            standard = (target - self._centre) / self._spread
            self._networks = [network.fit(self._scaler(features), standard) for network in networks]
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds."""
        if not len(features):
            return np.zeros(0)
        scaled = self._scaler(features)
        mean = np.mean([network.predict(scaled) for network in self._networks], axis=0)
        return np.exp(np.clip(mean * self._spread + self._centre, -50, 50))


class Blend:
    """The geometric mean of several models, each with a weight."""

    def __init__(self, models: Sequence[LatencyModel], weights: Sequence[float]) -> None:
        self.models, self.weights = models, weights

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> Blend:
        """Fits each of them."""
        for model in self.models:
            model.fit(features, latency_ms)
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds."""
        return geometric_mean([model.predict(features) for model in self.models], self.weights)


def geometric_mean(values: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """The weighted geometric mean of arrays of one shape."""
    return np.exp(np.average(np.log(values), axis=0, weights=weights))

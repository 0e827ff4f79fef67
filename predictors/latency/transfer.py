"""TransferGP: a Gaussian process with a prior from other devices, for about ten measurements of a new device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import product

import numpy as np

from predictors.latency.regressions import PowerLaw, Scaler, polynomial_features
from predictors.latency.robust import CAUCHY_DF, NORMAL_DF, variational_posterior

Predict = Callable[[np.ndarray], np.ndarray]
"""Predicts the latency on a device: (n, d) features -> (n,) milliseconds."""


class SourceDevices:
    """The devices that a prior is learned from.

    Args:
        predict: One latency predictor per device.
        features: (m, d) features that were measured on them.
    """

    def __init__(self, predict: Sequence[Predict], features: np.ndarray) -> None:
        self.predict, self.features = predict, features

    def predict_log(self, features: np.ndarray) -> np.ndarray:
        """Logarithms of the latencies on all devices: (n, devices)."""
        return np.log(np.stack([predict(features) for predict in self.predict], axis=1))

    @cached_property
    def log_latency(self) -> np.ndarray:
        """`predict_log` of the measured features: (m, devices)."""
        return self.predict_log(self.features)

    @cached_property
    def power_law(self) -> PowerLaw:
        """The power law fitted to the mean of the devices."""
        return PowerLaw().fit(self.features, np.exp(self.log_latency.mean(axis=1)))

    def prior_means(self, features: np.ndarray, log_latency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Candidates for the log prior mean (n,) of a new device: the mean of the devices, and the power law.

        Args:
            features: (n, d) features.
            log_latency: (n, devices) `predict_log` of the features.
        """
        return log_latency.mean(axis=1), np.log(self.power_law.predict(features))


class ScaledPrior:
    """The geometric mean of the source devices times one factor: the simplest model of a new device.

    Args:
        sources: The source devices.
    """

    def __init__(self, sources: SourceDevices) -> None:
        self.sources, self.log_factor = sources, 0.0

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> ScaledPrior:
        """Fits the factor to (n, d) features and (n,) latencies: the median of the ratios."""
        self.log_factor = float(np.median(np.log(latency_ms) - self._log_mean(features)))
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds."""
        return np.exp(self._log_mean(features) + self.log_factor)

    def _log_mean(self, features: np.ndarray) -> np.ndarray:
        mean: np.ndarray = self.sources.predict_log(features).mean(axis=1)
        return mean


class TransferGP:
    """A Gaussian process on the logarithm of the latency, with a mean and covariance learned from other devices.

    The prior mean is that of the source devices, or a power law fitted to it, which extrapolates better to models that
    are larger than those measured there. Each device deviates from the mean by a weighted sum of features and their
    products; the weights of a new device have the distribution of those of the source devices (Rasmussen & Williams
    2006, 2.7). The choice of the mean, the prior variances and the noise are averaged by their evidence. The prior on
    the constant is nearly flat, because devices differ in speed. Errors may have heavy tails.

    Args:
        sources: The source devices.
    """

    own_variances, free_variances = (0.0, 0.3), (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
    """Candidate prior variances of the weights: relative to those among the devices, and equal for all weights."""
    slope_variance, constant_variance = 0.1, 100.0
    noises = 10.0 ** np.arange(-6.0, -1.0)
    tails: Sequence[tuple[float, float]] = (CAUCHY_DF, 2.0), (NORMAL_DF, 0.0)
    """Candidate degrees of freedom of the errors with their log odds; measurements are often disturbed."""
    power_law_log_odds = -2.0
    """Log odds of the power law, which is the worse mean within the measured range."""

    def __init__(self, sources: SourceDevices) -> None:
        self.sources = sources

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> TransferGP:
        """Fits (n, d) features to (n,) latencies."""
        sources, source_features, devices = self.sources, self.sources.features, self.sources.log_latency
        all_features = np.concatenate([source_features, features])
        self._scaler = Scaler(all_features)
        self._product_scaler = Scaler(polynomial_features(self._scaler(all_features)))
        self._centre = devices.mean()
        source_means = sources.prior_means(source_features, devices)
        means = sources.prior_means(features, sources.predict_log(features))
        fits = []
        for log_odds, source_mean, mean in zip((0.0, self.power_law_log_odds), source_means, means, strict=True):
            prior = _learn_prior(self._design(source_features, source_mean), devices)
            evidence, weights = self._posterior(prior, self._design(features, mean), np.log(latency_ms) - mean)
            fits.append((evidence + log_odds, weights))
        largest = max(evidence.max() for evidence, _ in fits)
        posterior_weights = [np.exp(evidence - largest) for evidence, _ in fits]
        total = sum(weight.sum() for weight in posterior_weights)
        self._shares = [weight.sum() / total for weight in posterior_weights]
        self._weights = [weight @ w / total for weight, (_, w) in zip(posterior_weights, fits, strict=True)]
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds."""
        log = np.zeros(len(features))
        means = self.sources.prior_means(features, self.sources.predict_log(features))
        for mean, share, weights in zip(means, self._shares, self._weights, strict=True):
            log += share * mean + self._design(features, mean) @ weights
        return np.exp(np.clip(log, -50, 50))

    def _posterior(
        self, prior: tuple[np.ndarray, np.ndarray], design: np.ndarray, target: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log evidence (s,) and mean weights (s, k) for all candidate variances, tails and noises.

        Args:
            prior: Result of `_learn_prior`.
            design: (n, k).
            target: (n,) log latencies minus the prior mean.
        """
        root_of_devices, variance_of_devices = prior
        fits, fixed = [], np.zeros(design.shape[1])
        fixed[:2] = self.constant_variance, self.slope_variance
        for own, free in product(self.own_variances, self.free_variances):
            deviations = np.sqrt(own * variance_of_devices + free / len(fixed) + fixed)
            root = np.concatenate([root_of_devices, np.diag(deviations)], axis=1)
            for df, log_odds in self.tails:
                evidence, weights = variational_posterior(design, target, root, self.noises, df)
                fits.append((evidence + log_odds, weights))
        evidence, weights = (np.concatenate(arrays) for arrays in zip(*fits, strict=True))
        return evidence, weights

    def _design(self, features: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Columns (n, k): the constant, the prior mean, the features and their products."""
        columns = self._product_scaler(polynomial_features(self._scaler(features)))
        return np.concatenate([np.ones((len(mean), 1)), (mean - self._centre)[:, None], columns], axis=1)


def _learn_prior(design: np.ndarray, devices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prior of the weights by which devices deviate from their mean.

    Args:
        design: (m, k).
        devices: (m, devices) log latencies.

    Returns:
        A root (k, devices) of the covariance of the weights, and their variances (k,).
    """
    residual = devices - devices.mean(axis=1, keepdims=True)
    gram = design.T @ design + 1e-3 * len(design) * np.eye(design.shape[1])
    weights = np.linalg.solve(gram, design.T @ residual)
    return weights / np.sqrt(devices.shape[1]), (weights**2).mean(axis=1)

"""PriorProcess: a regression that starts from what other devices take, for ten measurements of a new one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from predictors.heavy_tails import HEAVY, NORMAL, posterior
from predictors.regressions import PowerLaw, Scaler, products

Predict = Callable[[np.ndarray], np.ndarray]
"""What another device takes: (n, d) features -> (n,) milliseconds."""


class PriorProcess:
    """A Gaussian process on the logarithm whose mean and covariance are learned from other devices.

    The mean is that of the devices, or a power law fitted to it, which says more of models that are larger than any
    measured there. Each device departs from it by a weighted sum of features and their products; the weights of a new
    device are drawn like theirs (Rasmussen & Williams 2006, 2.7). Which mean, how freely and with how much noise is
    averaged over by the evidence. A constant costs nothing: devices differ in speed. Errors may have heavy tails.

    Args:
        prior: What other devices take.
        known: (m, d) features on which they are known.
    """

    own, free = (0.0, 0.3), (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
    """Variances that may hold: of each weight by itself, in those that it has among devices; of all weights."""
    slope, constant = 0.1, 100.0
    noises = 10.0 ** np.arange(-6.0, -1.0)
    tails: Sequence[tuple[float, float]] = (HEAVY, 2.0), (NORMAL, 0.0)
    """Degrees of freedom that errors may have, each with its log odds: measurements are often disturbed."""
    law = -2.0
    """Log odds of the power law: within what is known it is the worse mean."""

    def __init__(self, prior: Sequence[Predict], known: np.ndarray) -> None:
        self.prior, self.known = prior, known

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> PriorProcess:
        """Fits (n, d) features to (n,) latencies."""
        reference = np.concatenate([self.known, features])
        self._scaler = Scaler(reference)
        self._spread = Scaler(products(self._scaler(reference)))
        self._law = PowerLaw().fit(self.known, np.exp(self._devices(self.known).mean(axis=1)))
        self._centre = self._devices(self.known).mean()
        fits = [
            self._posterior(known, base, features, np.log(latency_ms) - base, odds)
            for known, base, odds in zip(self._means(self.known), self._means(features), (0.0, self.law), strict=True)
        ]
        likely = max(evidence.max() for evidence, _ in fits)
        chances = [np.exp(evidence - likely) for evidence, _ in fits]
        total = sum(chance.sum() for chance in chances)
        self._shares = [chance.sum() / total for chance in chances]
        self._weights = [chance @ weights / total for chance, (_, weights) in zip(chances, fits, strict=True)]
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds."""
        log = np.zeros(len(features))
        for base, share, weights in zip(self._means(features), self._shares, self._weights, strict=True):
            log += share * base + self._design(features, base) @ weights
        return np.exp(np.clip(log, -50, 50))

    def _posterior(
        self, known: np.ndarray, base: np.ndarray, features: np.ndarray, target: np.ndarray, odds: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log evidence (s,) and mean weights (s, k) of everything that may hold, with one mean."""
        departures, learned = _weights_of(self._design(self.known, known), self._devices(self.known))
        design, fits = self._design(features, base), []
        always = np.zeros(design.shape[1])
        always[:2] = self.constant, self.slope
        for own, free in product(self.own, self.free):
            single = np.sqrt(own * learned + free / len(always) + always)
            root = np.concatenate([departures, np.diag(single)], axis=1)
            for freedom, more in self.tails:
                evidence, weights = posterior(design, target, root, self.noises, freedom)
                fits.append((evidence + odds + more, weights))
        evidence, weights = (np.concatenate(parts) for parts in zip(*fits, strict=True))
        return evidence, weights

    def _means(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms (n,): of the devices in the mean, and of the power law."""
        return self._devices(features).mean(axis=1), np.log(self._law.predict(features))

    def _devices(self, features: np.ndarray) -> np.ndarray:
        return np.log(np.stack([predict(features) for predict in self.prior], axis=1))

    def _design(self, features: np.ndarray, base: np.ndarray) -> np.ndarray:
        spread = self._spread(products(self._scaler(features)))
        return np.concatenate([np.ones((len(base), 1)), (base - self._centre)[:, None], spread], axis=1)


def _weights_of(design: np.ndarray, devices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What makes each device of its mean: a root (k, devices) of the weights' covariance, and their variances (k,)."""
    residual = devices - devices.mean(axis=1, keepdims=True)
    gram = design.T @ design + 1e-3 * len(design) * np.eye(design.shape[1])
    weights = np.linalg.solve(gram, design.T @ residual)
    return weights / np.sqrt(devices.shape[1]), (weights**2).mean(axis=1)

"""PriorProcess: a regression that starts from what other devices take, for ten measurements of a new one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import product

import numpy as np

from predictors.latency.regressions import PowerLaw, Scaler, products
from predictors.latency.robust import HEAVY, NORMAL, posterior

Predict = Callable[[np.ndarray], np.ndarray]
"""What another device takes: (n, d) features -> (n,) milliseconds."""


class OtherDevices:
    """What other devices take.

    Args:
        predict: What each of them takes.
        known: (m, d) features on which they are known.
    """

    def __init__(self, predict: Sequence[Predict], known: np.ndarray) -> None:
        self.predict, self.known = predict, known

    def logarithms(self, features: np.ndarray) -> np.ndarray:
        """Of their latencies: (n, devices)."""
        return np.log(np.stack([predict(features) for predict in self.predict], axis=1))

    @cached_property
    def at_known(self) -> np.ndarray:
        """`logarithms` where they are known."""
        return self.logarithms(self.known)

    @cached_property
    def law(self) -> PowerLaw:
        """The power law nearest to their mean."""
        return PowerLaw().fit(self.known, np.exp(self.at_known.mean(axis=1)))

    def bases(self, features: np.ndarray, logarithms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms (n,) that a new device may start from: the mean of theirs, and the power law."""
        return logarithms.mean(axis=1), np.log(self.law.predict(features))


class PriorProcess:
    """A Gaussian process on the logarithm whose mean and covariance are learned from other devices.

    The mean is that of the devices, or a power law fitted to it, which says more of models that are larger than any
    measured there. Each device departs from it by a weighted sum of features and their products; the weights of a new
    device are drawn like theirs (Rasmussen & Williams 2006, 2.7). Which mean, how freely and with how much noise is
    averaged over by the evidence. A constant costs nothing: devices differ in speed. Errors may have heavy tails.

    Args:
        others: The other devices.
    """

    own, free = (0.0, 0.3), (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
    """Variances that may hold: of each weight by itself, in those that it has among devices; of all weights."""
    slope, constant = 0.1, 100.0
    noises = 10.0 ** np.arange(-6.0, -1.0)
    tails: Sequence[tuple[float, float]] = (HEAVY, 2.0), (NORMAL, 0.0)
    """Degrees of freedom that errors may have, each with its log odds: measurements are often disturbed."""
    law = -2.0
    """Log odds of the power law: within what is known it is the worse mean."""

    def __init__(self, others: OtherDevices) -> None:
        self.others = others

    def fit(self, features: np.ndarray, latency_ms: np.ndarray) -> PriorProcess:
        """Fits (n, d) features to (n,) latencies."""
        others, known, devices = self.others, self.others.known, self.others.at_known
        reference = np.concatenate([known, features])
        self._scaler = Scaler(reference)
        self._spread = Scaler(products(self._scaler(reference)))
        self._centre = devices.mean()
        at_known, here = others.bases(known, devices), others.bases(features, others.logarithms(features))
        fits = []
        for odds, base_known, base in zip((0.0, self.law), at_known, here, strict=True):
            prior = _weights_of(self._design(known, base_known), devices)
            evidence, weights = self._posterior(prior, self._design(features, base), np.log(latency_ms) - base)
            fits.append((evidence + odds, weights))
        likely = max(evidence.max() for evidence, _ in fits)
        chances = [np.exp(evidence - likely) for evidence, _ in fits]
        total = sum(chance.sum() for chance in chances)
        self._shares = [chance.sum() / total for chance in chances]
        self._weights = [chance @ weights / total for chance, (_, weights) in zip(chances, fits, strict=True)]
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, d) features -> (n,) milliseconds."""
        log, bases = np.zeros(len(features)), self.others.bases(features, self.others.logarithms(features))
        for base, share, weights in zip(bases, self._shares, self._weights, strict=True):
            log += share * base + self._design(features, base) @ weights
        return np.exp(np.clip(log, -50, 50))

    def _posterior(
        self, prior: tuple[np.ndarray, np.ndarray], design: np.ndarray, target: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log evidence (s,) and mean weights (s, k) of everything that may hold, given what `_weights_of` says."""
        departures, learned = prior
        fits, always = [], np.zeros(design.shape[1])
        always[:2] = self.constant, self.slope
        for own, free in product(self.own, self.free):
            single = np.sqrt(own * learned + free / len(always) + always)
            root = np.concatenate([departures, np.diag(single)], axis=1)
            for freedom, odds in self.tails:
                evidence, weights = posterior(design, target, root, self.noises, freedom)
                fits.append((evidence + odds, weights))
        evidence, weights = (np.concatenate(parts) for parts in zip(*fits, strict=True))
        return evidence, weights

    def _design(self, features: np.ndarray, base: np.ndarray) -> np.ndarray:
        spread = self._spread(products(self._scaler(features)))
        return np.concatenate([np.ones((len(base), 1)), (base - self._centre)[:, None], spread], axis=1)


def _weights_of(design: np.ndarray, devices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What makes each device of its mean: a root (k, devices) of the weights' covariance, and their variances (k,)."""
    residual = devices - devices.mean(axis=1, keepdims=True)
    gram = design.T @ design + 1e-3 * len(design) * np.eye(design.shape[1])
    weights = np.linalg.solve(gram, design.T @ residual)
    return weights / np.sqrt(devices.shape[1]), (weights**2).mean(axis=1)

"""Active learning: selects the subnetworks to measure next where the predictor is most uncertain near a bound."""

from __future__ import annotations

import numpy as np

from predictors.gaussian_process import GaussianProcess
from predictors.latency.errors import NEAR_BOUND
from predictors.latency.regressions import Scaler


def most_uncertain(
    features: np.ndarray, latency_ms: np.ndarray, candidates: np.ndarray, count: int, *, bound_ms: float
) -> list[int]:
    """Selects candidates to measure next.

    Each is the candidate with the largest standard deviation of a Gaussian process on the logarithm of the latency,
    weighted by a Gaussian around the bound. After each, the process is updated as if the prediction had been measured.

    Args:
        features: (n, d) features of the measured subnetworks.
        latency_ms: (n,) their latencies in milliseconds.
        candidates: (m, d) features of the candidates.
        count: Number of candidates to select, at most m.
        bound_ms: Bound on the latency in milliseconds.

    Returns:
        Rows of the candidates.
    """
    scaler = Scaler(np.concatenate([features, candidates]))
    x, y, z = scaler(features), np.log(latency_ms), scaler(candidates)
    process, selected = GaussianProcess().fit(x, y), list[int]()
    for _ in range(count):
        mean, spread = process.predict(z)
        score = np.log(spread) - ((mean - np.log(bound_ms)) / NEAR_BOUND) ** 2 / 2
        score[selected] = -np.inf
        selected.append(int(score.argmax()))
        x, y = np.concatenate([x, z[selected[-1:]]]), np.append(y, mean[selected[-1]])
        process.update(x, y)
    return selected

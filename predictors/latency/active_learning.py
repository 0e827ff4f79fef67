"""Active profiling: what to measure next is what a predictor is least sure of near a bound on the latency."""

from __future__ import annotations

import numpy as np

from predictors.gaussian_process import GaussianProcess
from predictors.latency.errors import BAND
from predictors.latency.regressions import Scaler


def least_sure(
    features: np.ndarray, latency_ms: np.ndarray, pool: np.ndarray, count: int, *, around_ms: float
) -> list[int]:
    """Chooses rows of a pool to measure next, one after another as if those before had been measured as predicted.

    Each is the one of which a Gaussian process on the logarithm of the latency is least sure, its standard deviation
    weighted by a bell around the bound.

    Args:
        features: (n, d) of what was measured.
        latency_ms: (n,) how long it took.
        pool: (m, d) of what may be measured.
        count: How many to choose, at most m.
        around_ms: The bound.
    """
    scaler = Scaler(np.concatenate([features, pool]))
    x, y, z = scaler(features), np.log(latency_ms), scaler(pool)
    process, chosen = GaussianProcess().fit(x, y), list[int]()
    for _ in range(count):
        mean, spread = process.predict(z)
        score = np.log(spread) - ((mean - np.log(around_ms)) / BAND) ** 2 / 2
        score[chosen] = -np.inf
        chosen.append(int(score.argmax()))
        x, y = np.concatenate([x, z[chosen[-1:]]]), np.append(y, mean[chosen[-1]])
        process.update(x, y)
    return chosen

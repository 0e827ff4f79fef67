"""Probability of success: which evaluations fail is learned from those that did."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from predictors.gaussian_process import GaussianProcess

LABEL_STD = 0.5
"""Standard deviation of a label around a certain prediction: half of its distance from the boundary."""


class SuccessModel:
    """Least-squares classification by a Gaussian process (Rasmussen & Williams 2006, 6.5), one relevance per feature.

    Successes have the label 1, failures -1. A point whose predicted label is negative is nearer to failures than to
    successes.

    Args:
        features: (n, d) of evaluated points, with at least one success and one failure.
        succeeded: Whether the evaluation of each did (n,).
    """

    def __init__(self, features: np.ndarray, succeeded: np.ndarray) -> None:
        self._process = GaussianProcess().fit(features, np.where(succeeded, 1.0, -1.0))

    def margin(self, features: np.ndarray) -> np.ndarray:
        """Predicted label (n,): above zero for points that are nearer to successes."""
        return self._process.mean(features)

    def probability(self, features: np.ndarray) -> np.ndarray:
        """Probability of success (n,)."""
        margin, deviation = self._process.predict(features)
        return ndtr(margin / np.hypot(deviation, LABEL_STD))

"""Robust regression: Student-t errors, so that a measurement that was disturbed by other work has little weight.

With one degree of freedom (the Cauchy distribution), half of the errors are below the scale and a few are arbitrarily
large; with a thousand, errors are practically normal.
"""

from __future__ import annotations

import numpy as np

CAUCHY_DF, NORMAL_DF = 1.0, 1000.0
"""Degrees of freedom of heavy-tailed and of nearly normal errors."""
ITERATIONS = 12
"""Iterations of a fit; sixty changed the errors from ten measurements by at most 0.03 points."""


def row_weights(residuals: np.ndarray) -> np.ndarray:
    """Weights of (n,) rows in the next iteration of reweighted least squares (Lange et al., 1989).

    The scale of the errors is the median of the absolute residuals: a residual of this size has weight 1, zero 2.
    """
    scale = max(float(np.median(np.abs(residuals))), 1e-9)
    return (CAUCHY_DF + 1) / (CAUCHY_DF + (residuals / scale) ** 2)


def variational_posterior(
    design: np.ndarray, target: np.ndarray, root: np.ndarray, noises: np.ndarray, df: float
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior of a linear model with Gaussian weights, by variational Bayes (Tipping & Lawrence, 2005).

    Args:
        design: (n, k).
        target: (n,).
        root: (k, m); the prior covariance of the weights is ``root @ root.T``.
        noises: (s,) squared scales of the errors; each gives one fit.
        df: Degrees of freedom of the errors.

    Returns:
        A lower bound on the log evidence (s,), up to a constant, and the mean weights (s, k).
    """
    from scipy.special import gammaln

    left, size, right = np.linalg.svd(design @ root, full_matrices=False)
    rows, noise, n = left * size, noises[:, None], len(target)
    prior, shape = df / 2, (df + 1) / 2
    squared = np.broadcast_to(noise, (len(noises), n))  # expected squared errors
    for _ in range(ITERATIONS):
        rate = prior + squared / noise / 2
        counts = shape / rate
        precision = np.eye(len(size)) + np.einsum("nr,sn,nq->srq", rows, counts / noise, rows, optimize=True)
        covariance = np.linalg.inv(precision)
        mean = np.einsum("srq,nq,sn->sr", covariance, rows, counts / noise * target, optimize=True)
        residuals = target - mean @ rows.T
        squared = residuals**2 + np.einsum("nr,srq,nq->sn", rows, covariance, rows, optimize=True)
    misfit = (target * residuals * counts / noise + np.log(noise / counts)).sum(axis=1) + np.linalg.slogdet(precision)[
        1
    ]
    tails = (np.log(rate / prior) + counts).sum(axis=1)
    constant = gammaln(shape) - gammaln(prior) - np.log(shape) / 2 + shape
    return n * constant - misfit / 2 - prior * tails, mean @ (root @ right.T).T

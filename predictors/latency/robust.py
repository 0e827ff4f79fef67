"""Heavy tails: errors that follow Student's t, so that a measurement beside other work counts for little.

With one degree of freedom, half of all errors lie within the scale and a few may be of any size; with a thousand,
errors are as good as normal.
"""

from __future__ import annotations

import numpy as np

HEAVY, NORMAL = 1.0, 1000.0
"""Degrees of freedom."""
ROUNDS = 12
"""Of a fit; after sixty by variational Bayes, errors from ten measurements were the same to 0.03 points."""


def row_weights(residuals: np.ndarray) -> np.ndarray:
    """How much each of (n,) rows counts in the next round of reweighted least squares (Lange et al., 1989).

    The scale of the errors is the median of the residuals: one of this size counts 1, one of none at all 2.
    """
    scale = max(float(np.median(np.abs(residuals))), 1e-9)
    return (HEAVY + 1) / (HEAVY + (residuals / scale) ** 2)


def posterior(
    design: np.ndarray, target: np.ndarray, root: np.ndarray, noises: np.ndarray, freedom: float
) -> tuple[np.ndarray, np.ndarray]:
    """A linear model whose weights are Gaussian a priori, by variational Bayes (Tipping & Lawrence, 2005).

    Args:
        design: (n, k).
        target: (n,).
        root: (k, m); the weights have the covariance ``root @ root.T``.
        noises: (s,) squared scales of the errors, each fitted by itself.
        freedom: Degrees of freedom of the errors.

    Returns:
        A bound on the log evidence (s,), up to what does not depend on the model, and the mean weights (s, k).
    """
    from scipy.special import gammaln

    left, size, right = np.linalg.svd(design @ root, full_matrices=False)
    rows, noise, n = left * size, noises[:, None], len(target)
    prior, shape = freedom / 2, (freedom + 1) / 2
    squared = np.broadcast_to(noise, (len(noises), n))  # expected squared errors
    for _ in range(ROUNDS):
        rate = prior + squared / noise / 2
        counts = shape / rate
        precision = np.eye(len(size)) + np.einsum("nr,sn,nq->srq", rows, counts / noise, rows, optimize=True)
        covariance = np.linalg.inv(precision)
        mean = np.einsum("srq,nq,sn->sr", covariance, rows, counts / noise * target, optimize=True)
        off = target - mean @ rows.T
        squared = off**2 + np.einsum("nr,srq,nq->sn", rows, covariance, rows, optimize=True)
    misfit = (target * off * counts / noise + np.log(noise / counts)).sum(axis=1) + np.linalg.slogdet(precision)[1]
    tails = (np.log(rate / prior) + counts).sum(axis=1)
    constant = gammaln(shape) - gammaln(prior) - np.log(shape) / 2 + shape
    return n * constant - misfit / 2 - prior * tails, mean @ (root @ right.T).T

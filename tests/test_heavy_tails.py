"""Robust regression: the normal case in the limit, and outliers."""

from __future__ import annotations

import numpy as np
from scipy.stats import multivariate_normal

from predictors.latency.robust import CAUCHY_DF, row_weights, variational_posterior

RNG = np.random.default_rng(0)
DESIGN, ROOT = RNG.normal(size=(12, 5)), RNG.normal(size=(5, 5))
WEIGHTS = ROOT @ RNG.normal(size=5)
NOISES = np.array([1e-4, 1e-2, 1.0])


def test_with_many_degrees_of_freedom_it_is_bayesian_linear_regression() -> None:
    target = DESIGN @ WEIGHTS + RNG.normal(size=12) / 10
    evidence, weights = variational_posterior(DESIGN, target, ROOT, NOISES, 1e7)
    covariance, exact = ROOT @ ROOT.T, []
    for noise, mean in zip(NOISES, weights, strict=True):
        of_target = DESIGN @ covariance @ DESIGN.T + noise * np.eye(12)
        np.testing.assert_allclose(mean, covariance @ DESIGN.T @ np.linalg.solve(of_target, target), rtol=1e-6)
        exact.append(multivariate_normal(cov=of_target).logpdf(target))
    np.testing.assert_allclose(evidence - evidence.mean(), np.array(exact) - np.mean(exact), rtol=1e-4)
    np.testing.assert_allclose(evidence, np.array(exact) + 6 * np.log(2 * np.pi), rtol=1e-4)


def test_outliers_are_ignored_where_the_noise_is_small() -> None:
    target = DESIGN @ WEIGHTS
    target[[3, 8]] += [5.0, -8.0]
    evidence, weights = variational_posterior(DESIGN, target, ROOT, NOISES, CAUCHY_DF)
    assert evidence.argmax() == 0
    np.testing.assert_allclose(weights[0], WEIGHTS, atol=0.02)


def test_weights_fall_with_the_residual() -> None:
    np.testing.assert_allclose(row_weights(np.array([0.0, -0.1, 0.1, 0.3, 9.0])), [2, 1, 1, 0.2, 2 / 8101])
    assert (row_weights(np.zeros(4)) == 2).all()

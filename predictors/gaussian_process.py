"""A Gaussian process for tens to hundreds of points with many features, each with a relevance of its own."""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

JITTER = 1e-6
ITERATIONS = 60


class GaussianProcess:
    """A Gaussian process whose kernel is a line, a Matern 5/2 and noise, over features of learned relevance.

    With relevances r, the kernel is ``a sum_k r_k x_k y_k + b matern(sqrt(sum_k r_k (x_k - y_k)^2)) + noise``
    (Rasmussen & Williams 2006). All parameters are found by maximum a posteriori; the prior on length scales grows
    with the root of the number of features (Hvarfner et al. 2024, arXiv 2402.02229). The gradient never holds an
    (n, n, d) array, as scikit-learn's does, which makes a relevance for each feature affordable.
    """

    def fit(self, features: np.ndarray, values: np.ndarray) -> GaussianProcess:
        """Finds the kernel's parameters, then conditions on all points."""
        d = features.shape[1]
        self._expected = np.concatenate([np.full(d, -np.log(d) - 1.0), np.log([0.5, 0.5, 0.02])])
        self._width = np.concatenate([np.full(d, 1.0), np.full(3, 2.0)])
        self._standardise(features, values)
        options = {"maxiter": ITERATIONS}
        self._theta = minimize(self._loss, self._expected, jac=True, method="L-BFGS-B", options=options).x
        return self.update(features, values)

    def update(self, features: np.ndarray, values: np.ndarray) -> GaussianProcess:
        """Conditions on other points with the kernel as it is."""
        self._standardise(features, values)
        self._root = np.exp(self._theta[:-3] / 2)
        self._z = self._x * self._root
        kernel = self._kernel(self._z)
        kernel[np.diag_indices_from(kernel)] += np.exp(self._theta[-1]) + JITTER
        self._low = cholesky(kernel, lower=True, check_finite=False)
        self._alpha = cho_solve((self._low, True), self._y, check_finite=False)
        return self

    def mean(self, features: np.ndarray) -> np.ndarray:
        """The mean alone, for many points at once."""
        return self._mean_by(self._kernel((features - self._origin) * self._root))

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean, and standard deviation less the noise of one observation."""
        z = (features - self._origin) * self._root
        kernel = self._kernel(z)
        linear, curved, _ = np.exp(self._theta[-3:])
        explained = solve_triangular(self._low, kernel.T, lower=True, check_finite=False)
        variance = linear * (z * z).sum(1) + curved - (explained * explained).sum(0)
        return self._mean_by(kernel), np.sqrt(np.maximum(variance, 1e-12)) * self._scale

    def _mean_by(self, kernel: np.ndarray) -> np.ndarray:
        return kernel @ self._alpha * self._scale + self._centre

    def _standardise(self, features: np.ndarray, values: np.ndarray) -> None:
        self._origin, self._centre, self._scale = features.mean(0), values.mean(), values.std() or 1.0
        self._x, self._y = features - self._origin, (values - self._centre) / self._scale

    def _kernel(self, z: np.ndarray) -> np.ndarray:
        """Covariance (m, n) of scaled features (m, d) with the points, without noise."""
        linear, curved, _ = np.exp(self._theta[-3:])
        dot = z @ self._z.T
        square = (z * z).sum(1)[:, None] + (self._z * self._z).sum(1) - 2 * dot
        root = np.sqrt(5 * np.maximum(square, 0.0))
        return linear * dot + curved * (1 + root + root**2 / 3) * np.exp(-root)

    def _loss(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log posterior of the kernel's parameters, and its gradient."""
        x, y, relevance = self._x, self._y, np.exp(theta[:-3])
        linear, curved, noise = np.exp(theta[-3:])
        dot = (x * relevance) @ x.T
        square = np.diag(dot)[:, None] + np.diag(dot) - 2 * dot
        root = np.sqrt(5 * np.maximum(square, 0.0))
        decay = np.exp(-root)
        matern = (1 + root + root**2 / 3) * decay
        kernel = linear * dot + curved * matern
        kernel[np.diag_indices_from(kernel)] += noise + JITTER
        try:
            low = cholesky(kernel, lower=True, check_finite=False)
        except LinAlgError:
            return 1e10, np.zeros_like(theta)
        inverse = cho_solve((low, True), np.eye(len(x)), check_finite=False)
        alpha = inverse @ y
        slack = inverse - np.outer(alpha, alpha)
        pull = slack * (-5 / 6 * curved) * (1 + root) * decay
        by_distance = 2 * (pull.sum(1) @ (x * x)) - 2 * ((pull @ x) * x).sum(0)
        by_dot = linear * ((slack @ x) * x).sum(0)
        by_scale = [linear * (slack * dot).sum(), curved * (slack * matern).sum(), noise * np.trace(slack)]
        off = (theta - self._expected) / self._width
        loss = y @ alpha / 2 + np.log(np.diag(low)).sum() + off @ off / 2
        gradient = np.concatenate([relevance * (by_distance + by_dot), by_scale]) / 2 + off / self._width
        return float(loss), gradient

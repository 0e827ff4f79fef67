"""A Gaussian process for tens to hundreds of points, with one relevance per feature (ARD)."""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

JITTER = 1e-6
ITERATIONS = 60


class GaussianProcess:
    """A Gaussian process with a linear kernel, a Matern 5/2 kernel and noise, and a learned relevance per feature.

    With relevances r, the kernel is ``a sum_k r_k x_k y_k + b matern(sqrt(sum_k r_k (x_k - y_k)^2)) + noise``
    (Rasmussen & Williams 2006). All parameters are maximum a posteriori estimates; the prior on length scales grows
    with the root of the number of features (Hvarfner et al. 2024, arXiv 2402.02229). Unlike scikit-learn's, the
    gradient needs no (n, n, d) array, which makes one relevance per feature affordable.
    """

    def fit(self, features: np.ndarray, values: np.ndarray, errors: np.ndarray | None = None) -> GaussianProcess:
        """Fits the parameters of the kernel, then conditions on the points.

        Args:
            features: (n, d).
            values: (n,).
            errors: Standard errors of the values (n,), if they are known; above zero. The variance of each point's
                noise is in proportion to the square of its error. Their level is fitted, from that of the errors on:
                scores on the same examples err together, and their differences are then less noisy.
        """
        d = features.shape[1]
        self._standardise(features, values)
        noise = 0.02 if errors is None else float(np.clip((errors**2).mean() / self._scale**2, 1e-4, 1.0))
        self._prior_mean = np.concatenate([np.full(d, -np.log(d) - 1.0), np.log([0.5, 0.5, noise])])
        self._prior_std = np.concatenate([np.full(d, 1.0), np.full(3, 2.0)])
        self._noise_shape = _noise_shape(errors)
        options = {"maxiter": ITERATIONS}
        self._theta = minimize(self._loss, self._prior_mean, jac=True, method="L-BFGS-B", options=options).x
        return self.update(features, values, errors)

    def update(self, features: np.ndarray, values: np.ndarray, errors: np.ndarray | None = None) -> GaussianProcess:
        """Conditions on other points without changing the kernel."""
        self._standardise(features, values)
        self._noise_shape = _noise_shape(errors)
        self._root = np.exp(self._theta[:-3] / 2)
        self._z = self._x * self._root
        kernel = self._kernel(self._z)
        kernel[np.diag_indices_from(kernel)] += np.exp(self._theta[-1]) * self._noise_shape + JITTER
        self._cholesky = cholesky(kernel, lower=True, check_finite=False)
        self._alpha = cho_solve((self._cholesky, True), self._y, check_finite=False)
        return self

    def mean(self, features: np.ndarray) -> np.ndarray:
        """The mean (n,), without the standard deviation."""
        return self._mean_from_kernel(self._kernel((features - self._origin) * self._root))

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean, and standard deviation without the noise of an observation: (n,), (n,)."""
        z = (features - self._origin) * self._root
        kernel = self._kernel(z)
        linear, matern, _ = np.exp(self._theta[-3:])
        explained = solve_triangular(self._cholesky, kernel.T, lower=True, check_finite=False)
        variance = linear * (z * z).sum(1) + matern - (explained * explained).sum(0)
        return self._mean_from_kernel(kernel), np.sqrt(np.maximum(variance, 1e-12)) * self._scale

    def _mean_from_kernel(self, kernel: np.ndarray) -> np.ndarray:
        return kernel @ self._alpha * self._scale + self._centre

    def _standardise(self, features: np.ndarray, values: np.ndarray) -> None:
        self._origin, self._centre, self._scale = features.mean(0), values.mean(), values.std() or 1.0
        self._x, self._y = features - self._origin, (values - self._centre) / self._scale

    def _kernel(self, z: np.ndarray) -> np.ndarray:
        """Covariance (m, n) of scaled features (m, d) with the fitted points, without noise."""
        linear, matern, _ = np.exp(self._theta[-3:])
        dot = z @ self._z.T
        square = (z * z).sum(1)[:, None] + (self._z * self._z).sum(1) - 2 * dot
        root = np.sqrt(5 * np.maximum(square, 0.0))
        return linear * dot + matern * (1 + root + root**2 / 3) * np.exp(-root)

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
        kernel[np.diag_indices_from(kernel)] += noise * self._noise_shape + JITTER
        try:
            lower = cholesky(kernel, lower=True, check_finite=False)
        except LinAlgError:
            return 1e10, np.zeros_like(theta)
        inverse = cho_solve((lower, True), np.eye(len(x)), check_finite=False)
        alpha = inverse @ y
        kernel_gradient = inverse - np.outer(alpha, alpha)
        distance_gradient = kernel_gradient * (-5 / 6 * curved) * (1 + root) * decay
        by_distance = 2 * (distance_gradient.sum(1) @ (x * x)) - 2 * ((distance_gradient @ x) * x).sum(0)
        by_dot = linear * ((kernel_gradient @ x) * x).sum(0)
        by_scale = [
            linear * (kernel_gradient * dot).sum(),
            curved * (kernel_gradient * matern).sum(),
            noise * (np.diag(kernel_gradient) * self._noise_shape).sum(),
        ]
        deviation = (theta - self._prior_mean) / self._prior_std
        loss = y @ alpha / 2 + np.log(np.diag(lower)).sum() + deviation @ deviation / 2
        gradient = np.concatenate([relevance * (by_distance + by_dot), by_scale]) / 2 + deviation / self._prior_std
        return float(loss), gradient


def _noise_shape(errors: np.ndarray | None) -> np.ndarray:
    """Variances relative to their mean (n,); one number if they are not known."""
    return np.ones(1) if errors is None else errors**2 / (errors**2).mean()

"""Quality surrogates: what a subnetwork would score, learned from the ones that were scored, with a spread."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Protocol

import numpy as np

FOLDS = 3
GAUSSIAN_PROCESS_LIMIT = 600


class Surrogate(Protocol):
    """Learns a figure (n,) from features (n, d)."""

    def fit(self, features: np.ndarray, values: np.ndarray) -> Surrogate:
        """Fits in place and returns itself."""
        ...

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each row: (n,), (n,)."""
        ...


class BayesianRidge:
    """A linear model with an evidence-based penalty (MacKay 1992)."""

    def fit(self, features: np.ndarray, values: np.ndarray) -> BayesianRidge:
        """Fits in place."""
        from sklearn.linear_model import BayesianRidge as Linear

        self._model = Linear().fit(features, values)
        return self

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean, and standard deviation less the noise of one observation."""
        mean, deviation = self._model.predict(features, return_std=True)
        return mean, np.sqrt(np.maximum(deviation**2 - 1.0 / self._model.alpha_, 0.0))


class GaussianProcess:
    """A Gaussian process with a linear and a Matern kernel and noise (Rasmussen & Williams 2006)."""

    def fit(self, features: np.ndarray, values: np.ndarray) -> GaussianProcess:
        """Fits in place."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

        kernel = ConstantKernel(1.0) * DotProduct(1.0) + ConstantKernel(1.0) * Matern(3.0, nu=2.5) + WhiteKernel(0.1)
        self._centre, self._scale = values.mean(), values.std() or 1.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model = GaussianProcessRegressor(kernel, random_state=0)
            self._model.fit(features, (values - self._centre) / self._scale)
        self._noise = float(self._model.kernel_.k2.noise_level)
        return self

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean, and standard deviation less the noise of one observation."""
        mean, deviation = self._model.predict(features, return_std=True)
        latent = np.sqrt(np.maximum(deviation**2 - self._noise, 0.0))
        return mean * self._scale + self._centre, latent * self._scale


class Forest:
    """Extremely randomized trees (Geurts et al. 2006); their disagreement is the spread."""

    def fit(self, features: np.ndarray, values: np.ndarray) -> Forest:
        """Fits in place."""
        from sklearn.ensemble import ExtraTreesRegressor

        self._model = ExtraTreesRegressor(50, min_samples_leaf=2, random_state=0).fit(features, values)
        return self

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over the trees."""
        trees = np.stack([tree.predict(features) for tree in self._model.estimators_])
        return trees.mean(0), trees.std(0)


SURROGATES: dict[str, Callable[[], Surrogate]] = {
    "gaussian-process": GaussianProcess,
    "ridge": BayesianRidge,
    "forest": Forest,
}
"""Every surrogate the search chooses from."""


def cross_validated_errors(features: np.ndarray, values: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Root mean squared error of each surrogate over 3 folds; the Gaussian process only while it is affordable."""
    folds = np.random.default_rng(seed).permutation(len(values)) % FOLDS
    found = {}
    for name, make in SURROGATES.items():
        if name == "gaussian-process" and len(values) > GAUSSIAN_PROCESS_LIMIT:
            continue
        squares = []
        for fold in range(FOLDS):
            held = folds == fold
            mean, _ = make().fit(features[~held], values[~held]).predict(features[held])
            squares.append(((mean - values[held]) ** 2).mean())
        found[name] = float(np.sqrt(np.mean(squares)))
    return found


def best_surrogate(features: np.ndarray, values: np.ndarray, seed: int = 0) -> Surrogate:
    """The surrogate with the lowest cross-validated error, fitted on everything.

    Args:
        features: (n, d), n of at least 10.
        values: (n,).
        seed: The folds.
    """
    errors = cross_validated_errors(features, values, seed)
    return SURROGATES[min(errors, key=lambda name: errors[name])]().fit(features, values)

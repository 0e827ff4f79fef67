"""Surrogates: regressions that predict a metric of a subnetwork, with a standard deviation, from evaluated ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import ndtr

from predictors.gaussian_process import GaussianProcess

FOLDS = 3


class Surrogate(Protocol):
    """Predicts a metric (n,) from features (n, d)."""

    def fit(self, features: np.ndarray, values: np.ndarray, errors: np.ndarray | None = None) -> Surrogate:
        """Fits hyperparameters and model in place, and returns itself; the values may have known errors (n,)."""
        ...

    def update(self, features: np.ndarray, values: np.ndarray, errors: np.ndarray | None = None) -> Surrogate:
        """Fits in place to other points with the hyperparameters found by `fit`, which is cheaper."""
        ...

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each row: (n,), (n,)."""
        ...


def _weights(errors: np.ndarray | None) -> np.ndarray | None:
    """Weights of values that have a noise of their own and one that is alike for all, as large as the median."""
    if errors is None:
        return None
    variances = errors**2
    weights: np.ndarray = 2 * np.median(variances) / (variances + np.median(variances))
    return weights


class BayesianRidge:
    """A linear model whose penalty maximises the evidence (MacKay 1992)."""

    def fit(self, features: np.ndarray, values: np.ndarray, errors: np.ndarray | None = None) -> BayesianRidge:
        """Fits in place."""
        from sklearn.linear_model import BayesianRidge as Linear

        self._model = Linear().fit(features, values, sample_weight=_weights(errors))
        return self

    update = fit

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean, and standard deviation without the noise of an observation: (n,), (n,)."""
        mean, deviation = self._model.predict(features, return_std=True)
        return mean, np.sqrt(np.maximum(deviation**2 - 1.0 / self._model.alpha_, 0.0))


class ExtraTrees:
    """Extremely randomized trees (Geurts et al. 2006); the standard deviation is that over the trees."""

    def fit(self, features: np.ndarray, values: np.ndarray, errors: np.ndarray | None = None) -> ExtraTrees:
        """Fits in place."""
        from sklearn.ensemble import ExtraTreesRegressor

        forest = ExtraTreesRegressor(30, min_samples_leaf=2, random_state=0)
        self._model = forest.fit(features, values, sample_weight=_weights(errors))
        return self

    update = fit

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over the trees: (n,), (n,)."""
        rows = features.astype(np.float32)
        trees = np.stack([tree.tree_.predict(rows)[:, 0] for tree in self._model.estimators_])
        return trees.mean(0), trees.std(0)


class GradientBoosting:
    """Gradient boosting (Friedman 2001) on three subsets of the points; they give the standard deviation."""

    def fit(self, features: np.ndarray, values: np.ndarray, errors: np.ndarray | None = None) -> GradientBoosting:
        """Fits in place."""
        from sklearn.ensemble import BaggingRegressor, GradientBoostingRegressor

        estimator = GradientBoostingRegressor(n_estimators=40, learning_rate=0.2, max_features=0.5, random_state=0)
        subset = max(1, 4 * len(values) // 5)  # a share would be one of the sum of the weights
        self._model = BaggingRegressor(estimator, 3, max_samples=subset, bootstrap=False, random_state=0)
        self._model.fit(features, values, sample_weight=_weights(errors))
        return self

    update = fit

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over the three ensembles: (n,), (n,)."""
        predictions = np.stack([estimator.predict(features) for estimator in self._model.estimators_])
        return predictions.mean(0), predictions.std(0)


SURROGATES: dict[str, Callable[[], Surrogate]] = {
    "gaussian-process": GaussianProcess,
    "ridge": BayesianRidge,
    "forest": ExtraTrees,
    "boosting": GradientBoosting,
}
"""Name -> surrogate; the search chooses among them."""

MIN_POINTS_FOR_BOOSTING = 100
"""With fewer points, boosting takes longer than all other surrogates together and predicts worse."""

MIN_POINTS_FOR_POSTERIOR = 20
"""With fewer points, little is learned from the others about one of them."""
MAX_TUNING_POINTS = 300
"""Most points that the hyperparameters of `posterior_means` are fitted to."""

HEAVY_TAIL = 0.03
"""Values have a heavy tail if the better half of them lies within this share of their range."""


@dataclass(frozen=True)
class ValidationScore:
    """Cross-validated errors of a surrogate.

    Attributes:
        error: Root mean squared error.
        calibration: Factor by which its standard deviations must be multiplied to match its errors.
    """

    error: float
    calibration: float


def cross_validate(
    features: np.ndarray, values: np.ndarray, seed: int = 0, errors: np.ndarray | None = None
) -> dict[str, ValidationScore]:
    """Cross-validates each surrogate in 3 folds; boosting only if there are enough points for it.

    Args:
        features: (n, d), n of at least 8.
        values: (n,).
        seed: Seed of the folds.
        errors: Standard errors of the values (n,), if they are known.
    """
    folds = np.random.default_rng(seed).permutation(len(values)) % FOLDS
    scores = {}
    for name, make in SURROGATES.items():
        if name == "boosting" and len(values) < MIN_POINTS_FOR_BOOSTING:
            continue
        residuals, deviation = np.empty(len(values)), np.empty(len(values))
        for fold in range(FOLDS):
            test = folds == fold
            known = None if errors is None else errors[~test]
            mean, deviation[test] = make().fit(features[~test], values[~test], known).predict(features[test])
            residuals[test] = values[test] - mean
        noise = 0.0 if errors is None else errors
        scaled = residuals / np.maximum(np.hypot(deviation, noise), 1e-3 * (values.std() or 1.0))
        scores[name] = ValidationScore(_rms(residuals), float(np.clip(_rms(scaled), 0.5, 5.0)))
    return scores


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def log_origin(values: np.ndarray) -> float | None:
    """Where the logarithm of heavy-tailed values starts; None for values that are modelled as they are.

    Values to minimise have a heavy tail if the better half of them lies within 3 % of their range, as perplexities do.
    Their differences then show on a logarithmic scale only. For positive values it starts at zero, so that a
    perplexity is modelled as its loss is.

    Args:
        values: (n,).
    """
    best, median = float(values.min()), float(np.median(values))
    if not 0 < median - best < HEAVY_TAIL * np.ptp(values):
        return None
    return 0.0 if best > 0 else 2 * best - median


def posterior_means(features: np.ndarray, values: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """The values (n,) that noisy ones are expected to have, given all of them: those by luck the best are drawn back.

    Args:
        features: (n, d).
        values: (n,).
        errors: Standard errors of the values (n,).

    Returns:
        The values as they are if there are fewer than 20, or most are exact.
    """
    known = known_errors(errors)
    if len(values) < MIN_POINTS_FOR_POSTERIOR or known is None:
        return values
    step = -(-len(values) // MAX_TUNING_POINTS)
    process = GaussianProcess().fit(features[::step], values[::step], known[::step])
    return process.update(features, values, known).mean(features)


def known_errors(errors: np.ndarray | None) -> np.ndarray | None:
    """Standard errors (n,) above zero; None if most are not known. A zero among them, as of a score of 1, is none."""
    median = 0.0 if errors is None else float(np.median(errors))
    return None if errors is None or median <= 0 else np.maximum(errors, median / 10)


class FittedSurrogate:
    """The surrogate with the least cross-validated error, fitted, with calibrated standard deviations.

    Values are first made nearly Gaussian by the monotone transformation of Yeo & Johnson (2000), as in HEBO
    (Cowen-Rivers et al. 2022, arXiv 2012.03826), so that a few very bad values do not hide the differences between
    good ones.

    Args:
        features: (n, d), n of at least 8.
        values: (n,).
        seed: Seed of the folds.
        errors: Standard errors of the values (n,), if they are known.
    """

    def __init__(
        self, features: np.ndarray, values: np.ndarray, seed: int = 0, errors: np.ndarray | None = None
    ) -> None:
        from sklearn.preprocessing import PowerTransformer

        self._mean, self._std = values.mean(), values.std() or 1.0
        self._power = PowerTransformer(standardize=False)
        self._power.fit(self._standardise(values))
        transformed = self.transform(values)
        errors = self._transformed_errors(values, errors)
        scores = cross_validate(features, transformed, seed, errors)
        self.name = min(scores, key=lambda name: scores[name].error)
        self._calibration = scores[self.name].calibration
        self._surrogate = SURROGATES[self.name]().fit(features, transformed, errors)

    def _standardise(self, values: np.ndarray) -> np.ndarray:
        return ((values - self._mean) / self._std).reshape(-1, 1)

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Transforms values to the scale of `predict`; the transformation is monotone."""
        if not len(values):
            return values
        return self._power.transform(self._standardise(values)).ravel()

    def _transformed_errors(self, values: np.ndarray, errors: np.ndarray | None) -> np.ndarray | None:
        """Standard errors (n,) on the transformed scale; None if they are not known."""
        known = known_errors(errors)
        return None if known is None else (self.transform(values + known) - self.transform(values - known)) / 2

    def update(self, features: np.ndarray, values: np.ndarray, errors: np.ndarray | None = None) -> None:
        """Fits to other points; the chosen surrogate, its hyperparameters and its calibration stay."""
        self._surrogate.update(features, self.transform(values), self._transformed_errors(values, errors))

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (n,) on the transformed scale."""
        mean, deviation = self._surrogate.predict(features)
        return mean, np.maximum(deviation * self._calibration, 1e-6)

    def probability_below(self, features: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
        """Probability (n, r) that the value is at most each of the thresholds (r,)."""
        mean, deviation = self.predict(features)
        return ndtr((self.transform(thresholds) - mean[:, None]) / deviation[:, None])

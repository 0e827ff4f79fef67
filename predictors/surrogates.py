"""Quality surrogates: what a subnetwork would score, learned from the ones that were scored, with a spread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import ndtr

from predictors.gaussian_process import GaussianProcess

FOLDS = 3


class Surrogate(Protocol):
    """Learns a figure (n,) from features (n, d)."""

    def fit(self, features: np.ndarray, values: np.ndarray) -> Surrogate:
        """Fits in place, its own settings too, and returns itself."""
        ...

    def update(self, features: np.ndarray, values: np.ndarray) -> Surrogate:
        """Fits in place to other points with the settings found by `fit`, which is cheaper."""
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

    update = fit

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean, and standard deviation less the noise of one observation."""
        mean, deviation = self._model.predict(features, return_std=True)
        return mean, np.sqrt(np.maximum(deviation**2 - 1.0 / self._model.alpha_, 0.0))


class Forest:
    """Extremely randomized trees (Geurts et al. 2006); their disagreement is the spread."""

    def fit(self, features: np.ndarray, values: np.ndarray) -> Forest:
        """Fits in place."""
        from sklearn.ensemble import ExtraTreesRegressor

        self._model = ExtraTreesRegressor(30, min_samples_leaf=2, random_state=0).fit(features, values)
        return self

    update = fit

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over the trees."""
        rows = features.astype(np.float32)
        trees = np.stack([member.tree_.predict(rows)[:, 0] for member in self._model.estimators_])
        return trees.mean(0), trees.std(0)


class Boosting:
    """Gradient boosting (Friedman 2001), some machines on parts of the points; their disagreement is the spread."""

    def fit(self, features: np.ndarray, values: np.ndarray) -> Boosting:
        """Fits in place."""
        from sklearn.ensemble import BaggingRegressor, GradientBoostingRegressor

        machine = GradientBoostingRegressor(n_estimators=40, learning_rate=0.2, max_features=0.5, random_state=0)
        self._model = BaggingRegressor(machine, 3, max_samples=0.8, bootstrap=False, random_state=0)
        self._model.fit(features, values)
        return self

    update = fit

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over the machines."""
        machines = np.stack([member.predict(features) for member in self._model.estimators_])
        return machines.mean(0), machines.std(0)


SURROGATES: dict[str, Callable[[], Surrogate]] = {
    "gaussian-process": GaussianProcess,
    "ridge": BayesianRidge,
    "forest": Forest,
    "boosting": Boosting,
}
"""Every surrogate the search chooses from."""

BOOSTING_FROM = 100
"""With fewer points, boosting costs more than all others together and predicts worse."""


@dataclass(frozen=True)
class Held:
    """How a surrogate did on points it was not fitted to.

    Attributes:
        error: Root mean squared error.
        calibration: Factor by which its standard deviations must be multiplied to match its errors.
    """

    error: float
    calibration: float


def cross_validate(features: np.ndarray, values: np.ndarray, seed: int = 0) -> dict[str, Held]:
    """How each surrogate does over 3 folds; boosting only where there are enough points for it.

    Args:
        features: (n, d), n of at least 8.
        values: (n,).
        seed: The folds.
    """
    folds = np.random.default_rng(seed).permutation(len(values)) % FOLDS
    found = {}
    for name, make in SURROGATES.items():
        if name == "boosting" and len(values) < BOOSTING_FROM:
            continue
        miss, deviation = np.empty(len(values)), np.empty(len(values))
        for fold in range(FOLDS):
            held = folds == fold
            mean, deviation[held] = make().fit(features[~held], values[~held]).predict(features[held])
            miss[held] = values[held] - mean
        scaled = miss / np.maximum(deviation, 1e-3 * (values.std() or 1.0))
        found[name] = Held(_rms(miss), float(np.clip(_rms(scaled), 0.5, 5.0)))
    return found


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


class Learned:
    """A figure learned by the surrogate that cross-validates best, with calibrated spread.

    Values are first brought close to a Gaussian by the monotone transformation of Yeo & Johnson (2000), as in HEBO
    (Cowen-Rivers et al. 2022, arXiv 2012.03826): a few very bad ones do not drown the differences between good ones.

    Args:
        features: (n, d), n of at least 8.
        values: (n,).
        seed: The folds.
    """

    def __init__(self, features: np.ndarray, values: np.ndarray, seed: int = 0) -> None:
        from sklearn.preprocessing import PowerTransformer

        self._centre, self._scale = values.mean(), values.std() or 1.0
        self._power = PowerTransformer(standardize=False)
        self._power.fit(self._standard(values))
        straight = self.transform(values)
        held = cross_validate(features, straight, seed)
        self.name = min(held, key=lambda name: held[name].error)
        self._calibration = held[self.name].calibration
        self._surrogate = SURROGATES[self.name]().fit(features, straight)

    def _standard(self, values: np.ndarray) -> np.ndarray:
        return ((values - self._centre) / self._scale).reshape(-1, 1)

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Values on the scale of `predict`; keeps their order."""
        if not len(values):
            return values
        return self._power.transform(self._standard(values)).ravel()

    def update(self, features: np.ndarray, values: np.ndarray) -> None:
        """Takes in other points; the surrogate's kind, settings and calibration stay."""
        self._surrogate.update(features, self.transform(values))

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (n,) on the transformed scale."""
        mean, deviation = self._surrogate.predict(features)
        return mean, np.maximum(deviation * self._calibration, 1e-6)

    def probability_below(self, features: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
        """Probability (n, r) that the figure is at most each of the thresholds (r,)."""
        mean, deviation = self.predict(features)
        return ndtr((self.transform(thresholds) - mean[:, None]) / deviation[:, None])

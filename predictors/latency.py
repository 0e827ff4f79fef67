"""LatencyPredictor: features -> milliseconds, fitted on measurements of any device and carrying its held-out error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from predictors.models import MODELS, PRIOR_MODELS, Errors, LeastSquares, errors
from predictors.regressions import Blend, LatencyModel, geometric_mean
from search_spaces import InputError

if TYPE_CHECKING:
    from rich.table import Table

MIN_MEASUREMENTS, MIN_WITH_PRIOR = 10, 4
FOLDS, FOLDS_OF_FEW = 5, 10
FEW = 30
"""Up to so many measurements there are more folds, the best models are averaged, and where other devices are known,
only models that start from them are eligible: so few measurements cannot tell the others apart."""
BLENDED, SHARPNESS = 3, 4
"""How many models are averaged at most, each weighted by its cross-validated error to the power of -`SHARPNESS`."""
COVERAGE = 0.9
CURVE = (10, 30, 100, 300)
"""Measurements that a learning curve is read at."""


@dataclass(frozen=True)
class PredictorReport:
    """How good a predictor is on measurements it has not seen.

    Attributes:
        model: The chosen models, names in `MODELS` and `PRIOR_MODELS` joined by ``+``.
        n_train: Measurements that models were fitted and chosen on.
        n_test: Measurements held out.
        cv_mape_percent: Model -> cross-validated error on the former, by which the model was chosen.
        held_out: Model or baseline -> errors on the latter.
        residual_bound: The relative residual that 90 % of measurements stay below when they are left out, with the
            correction of conformal prediction.
    """

    model: str
    n_train: int
    n_test: int
    cv_mape_percent: Mapping[str, float]
    held_out: Mapping[str, Errors]
    residual_bound: float

    @property
    def chosen(self) -> Errors:
        """Held-out errors of the predictor itself."""
        return self.held_out[self.model]

    def table(self) -> Table:
        """Held-out errors of every model and baseline, the chosen one marked."""
        from rich.table import Table

        table = Table(title=f"latency predictor: {self.n_test} held out of {self.n_train + self.n_test} measurements")
        for column in ("model", "MAPE %", "RMSE ms", "Kendall tau"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for name, e in self.held_out.items():
            known = name in MODELS or name in PRIOR_MODELS
            kind = "chosen" if name == self.model else "" if known else "baseline"
            shown = f"{name} ({kind})" if kind else name
            table.add_row(shown, f"{e.mape_percent:.1f}", f"{e.rmse_ms:.3g}", f"{e.kendall_tau:.3f}")
        return table

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PredictorReport:
        """Reads back ``dataclasses.asdict``."""
        return cls(**{**data, "held_out": {name: Errors(**e) for name, e in data["held_out"].items()}})


class LatencyPredictor:
    """Predicts latency from features, on any device and of any kind of model.

    Made by `fit`; the constructor refits ``report.model`` on all measurements.

    Example:
        >>> xeon = LatencyPredictor.fit(features, xeon_ms)            # (n, d) numbers and (n,) milliseconds
        >>> phone = LatencyPredictor.fit(few, few_ms, prior=[xeon])   # ten measurements suffice on another device
        >>> phone.predict(others), phone.spread_ms(others), phone.report.table()
    """

    def __init__(
        self,
        features: np.ndarray,
        latency_ms: np.ndarray,
        report: PredictorReport,
        *,
        names: Sequence[str],
        prior: Sequence[LatencyPredictor] = (),
    ) -> None:
        self.report, self.names, self.prior = report, tuple(names), tuple(prior)
        self.features, self.latency_ms = features, latency_ms
        self._model = _blend(report, _makers(names, prior)).fit(features, latency_ms)

    @classmethod
    def fit(
        cls,
        features: Any,
        latency_ms: Any,
        *,
        names: Sequence[str] | None = None,
        prior: LatencyPredictor | Sequence[LatencyPredictor] = (),
        baselines: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> LatencyPredictor:
        """Chooses a model by cross-validation on four fifths, reports on the held-out fifth, fits on all.

        Args:
            features: (n, d) numbers: an array, a list of rows or a data frame. What latency grows with is best given
                as it is (layers, widths, counts of operations); columns that never vary do no harm.
            latency_ms: (n,) milliseconds.
            names: Of the columns; by default those of the data frame, or numbers.
            prior: Predictors of other devices on the same features; with them, ten measurements suffice.
            baselines: Name -> (n,) or (n, k) numbers in which a straight line is fitted, for comparison.
            seed: Which measurements are held out, and the folds.

        Raises:
            InputError: If there are fewer than 10 measurements (4 with a prior), lengths differ, something is no
                finite number, a latency is not above zero, or a prior is of other features.
        """
        prior = [prior] if isinstance(prior, LatencyPredictor) else list(prior)
        table, found = _table(features)
        names = tuple(found if names is None else names)
        measured = _numbers(latency_ms, "latency_ms").reshape(-1)
        lines = {name: _numbers(line, name).reshape(len(measured), -1) for name, line in (baselines or {}).items()}
        _check(table, measured, names, prior)
        order = np.random.default_rng(seed).permutation(len(measured))
        held_out = max(len(measured) // 5, 1)
        makers = _makers(names, prior)
        report = _report(table, measured, makers, lines, train=order[held_out:], test=order[:held_out])
        return cls(table, measured, report, names=names, prior=prior)

    def predict(self, features: Any) -> np.ndarray:
        """Latencies of (n, d) features: (n,) milliseconds.

        Raises:
            InputError: If there are other columns than were fitted.
        """
        table, _ = _table(features, self.names)
        if table.shape[1] != len(self.names):
            raise InputError(
                f"a prediction needs the {len(self.names)} features that were fitted, but got {table.shape[1]}."
            )
        return self._model.predict(table)

    def spread_ms(self, features: Any) -> np.ndarray:
        """Half the width of an interval around each prediction that covers 90 % of measurements: (n,) milliseconds.

        Cross-conformal prediction on relative residuals (Vovk, 2015): each measurement is predicted by models that
        have not seen it. It holds for what is drawn like what was measured. With fewer than 9 measurements the largest
        residual stands in.
        """
        return self.predict(features) * self.report.residual_bound

    def learning_curve(self, sizes: Sequence[int] = CURVE, *, seed: int = 0) -> dict[int, Errors]:
        """Errors on a held-out fifth when only so many of the others are fitted; sizes beyond are left out."""
        order = np.random.default_rng(seed).permutation(len(self.latency_ms))
        test, rest = np.split(order, [len(order) // 5])
        curve = {}
        for size in (n for n in sizes if n <= len(rest)):
            part = rest[:size]
            fitted = LatencyPredictor.fit(
                self.features[part], self.latency_ms[part], names=self.names, prior=self.prior, seed=seed
            )
            curve[size] = errors(self.latency_ms[test], fitted.predict(self.features[test]))
        return curve


Maker = Callable[[], LatencyModel]


def _makers(names: Sequence[str], prior: Sequence[LatencyPredictor]) -> dict[str, Maker]:
    """Every model that may be chosen."""
    makers: dict[str, Maker] = {name: partial(make, names) for name, make in MODELS.items()}
    devices = [device.predict for device in prior]
    return makers | ({name: partial(make, devices) for name, make in PRIOR_MODELS.items()} if devices else {})


def _blend(report: PredictorReport, makers: Mapping[str, Maker]) -> LatencyModel:
    chosen = report.model.split("+")
    return Blend([makers[name]() for name in chosen], _weights(chosen, report.cv_mape_percent))


def _weights(chosen: Sequence[str], cv_mape_percent: Mapping[str, float]) -> list[float]:
    """How much each of the chosen models counts."""
    best = min(cv_mape_percent[name] for name in chosen)
    return [((best + 1e-9) / (cv_mape_percent[name] + 1e-9)) ** SHARPNESS for name in chosen]


def _numbers(values: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"`{name}` must be numbers, but got something else; encode it as numbers first.") from None
    if not np.isfinite(array).all():
        raise InputError(f"`{name}` must be finite numbers, but got a NaN or an infinity; leave those rows out.")
    return array


def _table(features: Any, fitted: Sequence[str] = ()) -> tuple[np.ndarray, list[str]]:
    """Features as (n, d) numbers and the names of their columns; of a data frame those that were fitted, in order."""
    columns = getattr(features, "columns", None)
    if columns is not None and fitted:
        missing = [name for name in fitted if name not in set(map(str, columns))]
        if missing:
            raise InputError(f"a prediction needs the features that were fitted, but got none named {missing}.")
        features = features.rename(columns=str)[list(fitted)]
        columns = fitted
    table = _numbers(features, "features")
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2:
        raise InputError(f"`features` must be (measurements, features) numbers, but got the shape {table.shape}.")
    return table, [f"{name}" for name in (range(table.shape[1]) if columns is None else columns)]


def _check(table: np.ndarray, latency_ms: np.ndarray, names: Sequence[str], prior: Sequence[LatencyPredictor]) -> None:
    if len(table) != len(latency_ms) or table.shape[1] != len(names):
        raise InputError(
            f"every measurement needs one row of features and one latency, and every column a name, but got "
            f"{len(table)} rows, {len(latency_ms)} latencies, {table.shape[1]} columns and {len(names)} names."
        )
    least = MIN_WITH_PRIOR if prior else MIN_MEASUREMENTS
    if len(table) < least:
        raise InputError(
            f"a latency predictor needs at least {least} measurements, but got {len(table)}; measure more"
            f"{'' if prior else f', or give predictors of other devices as a prior, then {MIN_WITH_PRIOR} suffice'}."
        )
    if not (latency_ms > 0).all():
        raise InputError(f"latencies must be above zero, but got {latency_ms.min()} ms; measure again.")
    for device in prior:
        if len(device.names) != len(names):
            raise InputError(
                f"a prior must be fitted on the same features, but it has {len(device.names)} and there are "
                f"{len(names)}; fit it on these columns."
            )


def _report(
    x: np.ndarray,
    latency_ms: np.ndarray,
    makers: Mapping[str, Maker],
    lines: Mapping[str, np.ndarray],
    *,
    train: np.ndarray,
    test: np.ndarray,
) -> PredictorReport:
    """Chooses a model on ``train`` and scores every model and baseline on ``test``, both row indices."""
    left_out = {name: _left_out(make, x[train], latency_ms[train]) for name, make in makers.items()}
    cv = {name: float(np.mean(np.abs(p / latency_ms[train] - 1)) * 100) for name, p in left_out.items()}
    eligible = [name for name in cv if name in PRIOR_MODELS] if len(train) <= FEW else []
    ranked = sorted(eligible or cv, key=lambda name: cv[name])
    chosen = ranked[: BLENDED if len(train) <= FEW else 1]
    name, weights = "+".join(chosen), _weights(chosen, cv)
    predicted = {name: make().fit(x[train], latency_ms[train]).predict(x[test]) for name, make in makers.items()}
    predicted[name] = geometric_mean([predicted[model] for model in chosen], weights)
    for baseline, line in lines.items():
        columns = range(line.shape[1])
        predicted[baseline] = LeastSquares(columns).fit(line[train], latency_ms[train]).predict(line[test])
    unseen = geometric_mean([left_out[model] for model in chosen], weights)
    pairs = ((latency_ms[train], unseen), (latency_ms[test], predicted[name]))
    residuals = np.concatenate([np.abs(took - expected) / expected for took, expected in pairs])
    return PredictorReport(
        model=name,
        n_train=len(train),
        n_test=len(test),
        cv_mape_percent=cv,
        held_out={model: errors(latency_ms[test], p) for model, p in predicted.items()},
        residual_bound=_conformal_bound(residuals),
    )


def _left_out(make: Maker, x: np.ndarray, latency_ms: np.ndarray) -> np.ndarray:
    """Predictions of rows, already in random order, by models fitted without them."""
    folds = min(len(x), FOLDS_OF_FEW) if len(x) <= FEW else FOLDS
    fold = np.arange(len(x)) % folds
    predicted = np.zeros(len(x))
    for k in range(folds):
        predicted[fold == k] = make().fit(x[fold != k], latency_ms[fold != k]).predict(x[fold == k])
    return np.maximum(predicted, 1e-9)


def _conformal_bound(residuals: np.ndarray) -> float:
    rank = math.ceil((len(residuals) + 1) * COVERAGE)
    return float(np.sort(residuals)[min(rank, len(residuals)) - 1])

"""LatencyPredictor: features -> milliseconds, fitted on measurements of any device and carrying its held-out error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from predictors.latency.errors import Errors, count_near, errors, errors_near
from predictors.latency.models import MODELS, PRIOR_MODELS, LeastSquares
from predictors.latency.regressions import Blend, LatencyModel, geometric_mean
from predictors.latency.report import PredictorReport
from predictors.latency.transfer import OtherDevices
from search_spaces import InputError

MIN_MEASUREMENTS, MIN_WITH_PRIOR = 10, 4
FOLDS, FOLDS_OF_FEW = 5, 10
FEW = 30
"""Up to so many measurements there are more folds, the best models are averaged, and where other devices are known,
only models that start from them are eligible: so few measurements cannot tell the others apart."""
UNLIKE = 4.0
"""Unless their cross-validated error is so many times that of the best without: the other devices are unlike this."""
BLENDED, SHARPNESS = 3, 4
"""How many models are averaged at most, each weighted by its cross-validated error to the power of -`SHARPNESS`."""
COVERAGE = 0.9
CURVE = (10, 30, 100, 300)
"""Measurements that a learning curve is read at."""


class LatencyPredictor:
    """Predicts latency from features, on any device and of any kind of model.

    Made by `fit`; the constructor refits ``report.model`` on all measurements.

    Examples:
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
        around_ms: float | None = None,
        chosen: int = 0,
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
            around_ms: A bound on the latency, near which errors are reported as well.
            chosen: How many of the last rows were chosen, not drawn at random; none of them is held out.
            seed: Which measurements are held out, and the folds.

        Raises:
            InputError: If there are fewer than 10 measurements (4 with a prior), lengths differ, something is no
                finite number, a latency or the bound is not above zero, more rows were chosen than there are, two
                columns have one name, or a prior is of other features.
        """
        prior = [prior] if isinstance(prior, LatencyPredictor) else list(prior)
        table, found = _table(features)
        names = tuple(found if names is None else names)
        measured = _numbers(latency_ms, "latency_ms").reshape(-1)
        lines = {name: _numbers(line, name) for name, line in (baselines or {}).items()}
        _check(table, measured, names, prior)
        _check_options(len(measured), lines, around_ms, chosen)
        lines = {name: line.reshape(len(measured), -1) for name, line in lines.items()}
        test, train = held_out_rows(len(measured), chosen, seed)
        report = _report(
            table, measured, _makers(names, prior), lines, train=train, test=test, around_ms=around_ms, chosen=chosen
        )
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
        test, rest = held_out_rows(len(self.latency_ms), self.report.n_chosen, seed)
        curve = {}
        for size in (n for n in sizes if n <= len(rest)):
            part = rest[:size]
            fitted = LatencyPredictor.fit(
                self.features[part], self.latency_ms[part], names=self.names, prior=self.prior, seed=seed
            )
            curve[size] = errors(self.latency_ms[test], fitted.predict(self.features[test]))
        return curve


def held_out_rows(n: int, chosen: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a fifth of n measurements that are held out, and the others.

    The last ``chosen`` rows were not drawn at random: what is held out is among those before, so that the errors are
    those of random subnetworks.
    """
    drawn = np.random.default_rng(seed).permutation(n - chosen)
    test, rest = np.split(drawn, [max(min(n // 5, len(drawn) // 2), 1)])
    return test, np.concatenate([rest, np.arange(n - chosen, n)])


Maker = Callable[[], LatencyModel]


def _makers(names: Sequence[str], prior: Sequence[LatencyPredictor]) -> dict[str, Maker]:
    """Every model that may be chosen."""
    makers: dict[str, Maker] = {name: partial(make, names) for name, make in MODELS.items()}
    if not prior:
        return makers
    orders = [_order(names, device) for device in prior]
    known = [device.features[:, np.argsort(order)] for device, order in zip(prior, orders, strict=True)]
    predict = [partial(_reordered, device, order) for device, order in zip(prior, orders, strict=True)]
    others = OtherDevices(predict, np.concatenate(known))
    return makers | {name: partial(make, others) for name, make in PRIOR_MODELS.items()}


def _order(names: Sequence[str], device: LatencyPredictor) -> list[int]:
    """Where the columns of a prior are: by their names, or by their places where one of the two has none."""
    return [names.index(name) for name in device.names] if set(device.names) == set(names) else [*range(len(names))]


def _reordered(device: LatencyPredictor, order: Sequence[int], table: np.ndarray) -> np.ndarray:
    return device.predict(table[:, order])


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
    if table.ndim != 2 or not table.shape[1]:
        raise InputError(f"`features` must be (measurements, features) numbers, but got the shape {table.shape}.")
    names = [f"{name}" for name in (range(table.shape[1]) if columns is None else columns)]
    if len(set(names)) < len(names):
        raise InputError(f"every column of `features` needs a name of its own, but got {names}.")
    return table, names


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
        unnamed = [str(column) for column in range(len(names))]
        strange = sorted(set(names) - set(device.names))
        if strange and unnamed not in ([*names], [*device.names]):
            raise InputError(f"a prior must be fitted on the same features, but it has none named {strange[:3]}.")


def _check_options(n: int, lines: Mapping[str, np.ndarray], around_ms: float | None, chosen: int) -> None:
    for name, line in lines.items():
        if len(line) != n:
            raise InputError(f"a baseline needs a row for each of {n} measurements, but `{name}` has {len(line)}.")
    if around_ms is not None and not around_ms > 0:
        raise InputError(f"`around_ms` must be above zero, but got {around_ms}; leave it out without a bound.")
    if not 0 <= chosen < n:
        raise InputError(f"`chosen` must be at least 0 and below the {n} measurements, but got {chosen}.")


def _report(
    x: np.ndarray,
    latency_ms: np.ndarray,
    makers: Mapping[str, Maker],
    lines: Mapping[str, np.ndarray],
    *,
    train: np.ndarray,
    test: np.ndarray,
    around_ms: float | None,
    chosen: int,
) -> PredictorReport:
    """Chooses a model on ``train`` and scores every model and baseline on ``test``, both row indices."""
    left_out = {name: _left_out(make, x[train], latency_ms[train]) for name, make in makers.items()}
    cv = {name: float(np.mean(np.abs(p / latency_ms[train] - 1)) * 100) for name, p in left_out.items()}
    ranked = sorted(cv, key=lambda name: cv[name])
    informed = [name for name in ranked if name in PRIOR_MODELS]
    if len(train) <= FEW and informed and cv[informed[0]] < UNLIKE * cv[ranked[0]]:
        ranked = informed
    best = ranked[: BLENDED if len(train) <= FEW else 1]
    name, weights = "+".join(best), _weights(best, cv)
    predicted = {name: make().fit(x[train], latency_ms[train]).predict(x[test]) for name, make in makers.items()}
    for found in (left_out, predicted):
        found[name] = geometric_mean([found[model] for model in best], weights)
    for baseline, line in lines.items():
        make = partial(LeastSquares, range(line.shape[1]))
        left_out[baseline] = _left_out(make, line[train], latency_ms[train])
        predicted[baseline] = make().fit(line[train], latency_ms[train]).predict(line[test])
    measured = np.concatenate([latency_ms[train], latency_ms[test]])
    unseen = {model: np.concatenate([left_out[model], p]) for model, p in predicted.items()}
    return PredictorReport(
        model=name,
        n_train=len(train),
        n_test=len(test),
        cv_mape_percent=cv,
        held_out={model: errors(latency_ms[test], p) for model, p in predicted.items()},
        residual_bound=_conformal_bound(np.abs(measured - unseen[name]) / unseen[name]),
        n_chosen=chosen,
        around_ms=around_ms,
        n_near=count_near(measured, around_ms),
        near={model: errors_near(measured, p, around_ms) for model, p in unseen.items()},
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

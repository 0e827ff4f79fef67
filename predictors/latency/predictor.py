"""LatencyPredictor: features -> milliseconds, fitted on measurements of any device, with its held-out errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from predictors.latency.errors import Errors, count_near_bound, errors, errors_near_bound
from predictors.latency.models import MODELS, PRIOR_MODELS, LeastSquares, models_for
from predictors.latency.regressions import LatencyModel, WeightedEnsemble, geometric_mean
from predictors.latency.report import PredictorReport
from predictors.latency.transfer import SourceDevices
from search_spaces import InputError

MIN_MEASUREMENTS, MIN_WITH_PRIOR = 10, 4
FOLDS, FOLDS_SMALL_SAMPLE = 5, 10
SMALL_SAMPLE = 30
"""Up to this number of measurements, cross-validation has more folds, and models that are proved to be better than the
simplest are averaged with it: those that use a prior with each other, and those that do not. What is left of both is
averaged, so that neither other devices nor so few measurements decide alone (experiments/bench)."""
SIMPLEST = ("scaled-prior", "work", "additive")
"""The model that few measurements must prove others to be better than: the first of these among them."""
PROOF = 2.0
"""Standard errors of the difference of two models' errors that prove one to be better (experiments/bench)."""
MAX_ENSEMBLE, WEIGHT_EXPONENT = 3, 4
"""Maximum number of averaged models, with and without a prior each; the weight of each is its cross-validated error to
the power of -4."""
MAX_ERROR_RATIO = 4.0
"""Models with or without a prior are left out where the best of the others errs so many times less."""
COVERAGE = 0.9
QUICK_MODELS = ("additive", "work", "linear")
LEARNING_CURVE_SIZES = (10, 30, 100, 300)
"""Numbers of measurements in a learning curve."""


class LatencyPredictor:
    """Predicts latency from features, for any device and any type of model.

    Create it with `fit`; the constructor refits the chosen models, ``report.model``, on all measurements.

    Examples:
        >>> xeon = LatencyPredictor.fit(features, xeon_ms)            # (n, d) numbers and (n,) milliseconds
        >>> phone = LatencyPredictor.fit(few, few_ms, prior=[xeon])   # another device: ten measurements suffice
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
        self._model = _ensemble(report, _model_factories(names, prior)).fit(features, latency_ms)

    @classmethod
    def fit(
        cls,
        features: Any,
        latency_ms: Any,
        *,
        names: Sequence[str] | None = None,
        prior: LatencyPredictor | Sequence[LatencyPredictor] = (),
        baselines: Mapping[str, Any] | None = None,
        bound_ms: float | None = None,
        n_active: int = 0,
        seed: int = 0,
    ) -> LatencyPredictor:
        """Chooses a model by cross-validation on four fifths, computes errors on the held-out fifth, and fits on all.

        Args:
            features: (n, d) numbers: an array, a list of rows or a data frame. Quantities that latency grows with
                (layers, widths, numbers of operations) need no transformation; constant columns do no harm.
            latency_ms: (n,) milliseconds.
            names: Names of the columns; by default those of the data frame, or their numbers.
            prior: Predictors of other devices on the same features; with them, ten measurements suffice.
            baselines: Name -> (n,) or (n, k) numbers on which a linear baseline is fitted.
            bound_ms: Bound on the latency; errors near it are reported as well.
            n_active: Number of the last rows that were selected by active learning, not sampled at random; these are
                never held out.
            seed: Seed of the held-out measurements and of the folds.

        Raises:
            InputError: If there are fewer than 10 measurements (4 with a prior), lengths differ, a value is not a
                finite number, a latency or the bound is not above zero, ``n_active`` exceeds the number of rows, two
                columns have the same name, or a prior has other features.
        """
        prior = [prior] if isinstance(prior, LatencyPredictor) else list(prior)
        table, columns = _feature_table(features)
        names = tuple(columns if names is None else names)
        measured = _finite_array(latency_ms, "latency_ms").reshape(-1)
        lines = {name: _finite_array(line, name) for name, line in (baselines or {}).items()}
        _check(table, measured, names, prior)
        _check_options(len(measured), lines, bound_ms, n_active)
        lines = {name: line.reshape(len(measured), -1) for name, line in lines.items()}
        test, train = held_out_rows(len(measured), n_active, seed)
        factories, rows = _model_factories(names, prior), {"train": train, "test": test}
        report = _report(table, measured, factories, lines, **rows, bound_ms=bound_ms, n_active=n_active)
        return cls(table, measured, report, names=names, prior=prior)

    def predict(self, features: Any) -> np.ndarray:
        """Latencies of (n, d) features: (n,) milliseconds.

        Raises:
            InputError: If the columns differ from those that were fitted.
        """
        table, _ = _feature_table(features, self.names)
        if table.shape[1] != len(self.names):
            raise InputError(
                f"a prediction needs the {len(self.names)} features that were fitted, but got {table.shape[1]}."
            )
        return self._model.predict(table)

    def spread_ms(self, features: Any) -> np.ndarray:
        """Half the width of an interval around each prediction that contains 90 % of measurements: (n,) milliseconds.

        Cross-conformal prediction on relative residuals (Vovk, 2015): each measurement is predicted by models that
        were fitted without it. It is valid for features from the distribution of the measured ones. With fewer than 9
        measurements it is the largest residual.
        """
        return self.predict(features) * self.report.residual_bound

    def learning_curve(self, sizes: Sequence[int] = LEARNING_CURVE_SIZES, *, seed: int = 0) -> dict[int, Errors]:
        """Errors on the held-out fifth after fitting subsets of the other measurements; larger sizes are left out."""
        test, rest = held_out_rows(len(self.latency_ms), self.report.n_active, seed)
        curve = {}
        for size in (n for n in sizes if n <= len(rest)):
            subset = rest[:size]
            fitted = LatencyPredictor.fit(
                self.features[subset], self.latency_ms[subset], names=self.names, prior=self.prior, seed=seed
            )
            curve[size] = errors(self.latency_ms[test], fitted.predict(self.features[test]))
        return curve


def held_out_rows(n: int, n_active: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits n rows into a held-out fifth and the others.

    The last ``n_active`` rows were not sampled at random and are never held out, so that the errors are those of
    random subnetworks.
    """
    sampled = np.random.default_rng(seed).permutation(n - n_active)
    test, rest = np.split(sampled, [max(min(n // 5, len(sampled) // 2), 1)])
    return test, np.concatenate([rest, np.arange(n - n_active, n)])


def quick_error(features: np.ndarray, latency_ms: np.ndarray, names: Sequence[str]) -> float:
    """The smallest cross-validated relative error of the models that fit in milliseconds.

    While models are measured it tells whether more measuring still helps; the chosen model is at least as good.

    Args:
        features: (n, d) features, in random order.
        latency_ms: (n,) milliseconds.
        names: Names of the columns.
    """
    unseen = [_cross_val_predict(partial(MODELS[name], names), features, latency_ms) for name in QUICK_MODELS]
    return min(float(np.mean(np.abs(predicted / latency_ms - 1))) for predicted in unseen)


ModelFactory = Callable[[], LatencyModel]


def _model_factories(names: Sequence[str], prior: Sequence[LatencyPredictor]) -> dict[str, ModelFactory]:
    """Name -> factory of every model that can be chosen."""
    factories: dict[str, ModelFactory] = {name: partial(make, names) for name, make in models_for(names).items()}
    if not prior:
        return factories
    orders = [_column_order(names, device) for device in prior]
    features = [device.features[:, np.argsort(order)] for device, order in zip(prior, orders, strict=True)]
    predict = [partial(_predict_reordered, device, order) for device, order in zip(prior, orders, strict=True)]
    sources = SourceDevices(predict, np.concatenate(features))
    return factories | {name: partial(make, sources) for name, make in PRIOR_MODELS.items()}


def _column_order(names: Sequence[str], device: LatencyPredictor) -> list[int]:
    """Positions of the columns of a prior: by name, or unchanged if one of the two has no names."""
    return [names.index(name) for name in device.names] if set(device.names) == set(names) else [*range(len(names))]


def _predict_reordered(device: LatencyPredictor, order: Sequence[int], table: np.ndarray) -> np.ndarray:
    return device.predict(table[:, order])


def _ensemble(report: PredictorReport, factories: Mapping[str, ModelFactory]) -> LatencyModel:
    chosen = report.model.split("+")
    return WeightedEnsemble([factories[name]() for name in chosen], _weights(chosen, report.cv_mape_percent))


def _weights(chosen: Sequence[str], cv_mape_percent: Mapping[str, float]) -> list[float]:
    """Weights of the chosen models."""
    best = min(cv_mape_percent[name] for name in chosen)
    return [((best + 1e-9) / (cv_mape_percent[name] + 1e-9)) ** WEIGHT_EXPONENT for name in chosen]


def _finite_array(values: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise InputError(
            f"`{name}` must be numbers, but got another type; encode the values as numbers first."
        ) from None
    if not np.isfinite(array).all():
        raise InputError(f"`{name}` must be finite numbers, but got a NaN or an infinity; leave those rows out.")
    return array


def _feature_table(features: Any, fitted: Sequence[str] = ()) -> tuple[np.ndarray, list[str]]:
    """Features as (n, d) numbers and their column names; a data frame is reduced to the fitted columns, in order."""
    columns = getattr(features, "columns", None)
    if columns is not None and fitted:
        missing = [name for name in fitted if name not in set(map(str, columns))]
        if missing:
            raise InputError(f"a prediction needs the features that were fitted, but {missing} are missing.")
        features = features.rename(columns=str)[list(fitted)]
        columns = fitted
    table = _finite_array(features, "features")
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or not table.shape[1]:
        raise InputError(f"`features` must be (measurements, features) numbers, but got the shape {table.shape}.")
    names = [f"{name}" for name in (range(table.shape[1]) if columns is None else columns)]
    if len(set(names)) < len(names):
        raise InputError(f"every column of `features` must have a different name, but got {names}.")
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
            f"{'' if prior else f', or pass predictors of other devices as a prior: then {MIN_WITH_PRIOR} suffice'}."
        )
    if not (latency_ms > 0).all():
        raise InputError(f"latencies must be above zero, but got {latency_ms.min()} ms; measure again.")
    for device in prior:
        if len(device.names) != len(names):
            raise InputError(
                f"a prior must be fitted on the same features, but it has {len(device.names)} instead of "
                f"{len(names)}; fit it on these columns."
            )
        unnamed = [str(column) for column in range(len(names))]
        missing = sorted(set(names) - set(device.names))
        if missing and unnamed not in ([*names], [*device.names]):
            raise InputError(f"a prior must be fitted on the same features, but it has none named {missing[:3]}.")


def _check_options(n: int, lines: Mapping[str, np.ndarray], bound_ms: float | None, n_active: int) -> None:
    for name, line in lines.items():
        if len(line) != n:
            raise InputError(f"a baseline needs a row for each of {n} measurements, but `{name}` has {len(line)}.")
    if bound_ms is not None and not bound_ms > 0:
        raise InputError(f"`bound_ms` must be above zero, but got {bound_ms}; leave it out if there is no bound.")
    if not 0 <= n_active < n:
        raise InputError(f"`n_active` must be at least 0 and below the {n} measurements, but got {n_active}.")


def _report(
    x: np.ndarray,
    latency_ms: np.ndarray,
    factories: Mapping[str, ModelFactory],
    lines: Mapping[str, np.ndarray],
    *,
    train: np.ndarray,
    test: np.ndarray,
    bound_ms: float | None,
    n_active: int,
) -> PredictorReport:
    """Chooses a model on the rows ``train`` and computes the errors of all models and baselines on ``test``."""
    unseen = {name: _cross_val_predict(make, x[train], latency_ms[train]) for name, make in factories.items()}
    cv, best = _errors_percent(unseen, latency_ms[train]), _best(unseen, latency_ms[train])
    name, weights = "+".join(best), _weights(best, cv)
    predicted = {name: make().fit(x[train], latency_ms[train]).predict(x[test]) for name, make in factories.items()}
    unseen[name] = _chosen_without(unseen, latency_ms[train], best)
    predicted[name] = geometric_mean([predicted[model] for model in best], weights)
    for baseline, line in lines.items():
        make = partial(LeastSquares, range(line.shape[1]))
        unseen[baseline] = _cross_val_predict(make, line[train], latency_ms[train])
        predicted[baseline] = make().fit(line[train], latency_ms[train]).predict(line[test])
    measured = np.concatenate([latency_ms[train], latency_ms[test]])
    of_all = {model: np.concatenate([unseen[model], p]) for model, p in predicted.items()}
    return PredictorReport(
        model=name,
        n_train=len(train),
        n_test=len(test),
        cv_mape_percent=cv,
        held_out={model: errors(latency_ms[test], p) for model, p in predicted.items()},
        residual_bound=_conformal_bound(np.abs(measured - of_all[name]) / of_all[name]),
        n_active=n_active,
        bound_ms=bound_ms,
        n_near_bound=count_near_bound(measured, bound_ms),
        near_bound={model: errors_near_bound(measured, p, bound_ms) for model, p in of_all.items()},
    )


def _errors_percent(unseen: Mapping[str, np.ndarray], latency_ms: np.ndarray) -> dict[str, float]:
    """Model -> its mean relative error in percent, by cross-validated predictions (n,)."""
    return {name: float(np.mean(np.abs(p / latency_ms - 1)) * 100) for name, p in unseen.items()}


def _best(unseen: Mapping[str, np.ndarray], latency_ms: np.ndarray) -> list[str]:
    """The models that are averaged, best first, by cross-validated predictions (n,)."""
    cv, is_small = _errors_percent(unseen, latency_ms), len(latency_ms) <= SMALL_SAMPLE
    ranked = sorted(cv, key=lambda name: cv[name])
    if not is_small:
        return ranked[:1]
    kinds = [[name for name in ranked if (name in PRIOR_MODELS) == uses_prior] for uses_prior in (False, True)]
    proven = [without_unproven(names, unseen, latency_ms)[:MAX_ENSEMBLE] for names in kinds if names]
    most = MAX_ERROR_RATIO * min(cv[names[0]] for names in proven)
    return sorted((name for names in proven if cv[names[0]] <= most for name in names), key=lambda name: cv[name])


def _chosen_without(unseen: Mapping[str, np.ndarray], latency_ms: np.ndarray, best: Sequence[str]) -> np.ndarray:
    """Predictions (n,) of few rows, each by the models that the other rows choose.

    The best of several models errs less on the rows that chose it than on others; with many rows this is nothing.
    """
    if len(latency_ms) > SMALL_SAMPLE:
        return geometric_mean([unseen[name] for name in best], _weights(best, _errors_percent(unseen, latency_ms)))
    predicted = np.zeros(len(latency_ms))
    for row, others in enumerate(~np.eye(len(latency_ms), dtype=bool)):
        rest = {name: p[others] for name, p in unseen.items()}
        chosen = _best(rest, latency_ms[others])
        weights = _weights(chosen, _errors_percent(rest, latency_ms[others]))
        predicted[row] = geometric_mean([unseen[name][[row]] for name in chosen], weights)[0]
    return predicted


def without_unproven(names: Sequence[str], unseen: Mapping[str, np.ndarray], latency_ms: np.ndarray) -> list[str]:
    """Models without those that few measurements do not prove to be better than the simplest.

    The simplest stays: the devices of the prior times one factor, or a weighted sum of columns with weights of at
    least zero. Others must err less than it by `PROOF` standard errors of the difference (cf. the one-standard-error
    rule, Breiman et al. 1984, Classification and Regression Trees).

    Args:
        names: The models, best first.
        unseen: Name -> cross-validated predictions (n,).
        latency_ms: (n,) measured.
    """
    simplest = next(name for name in SIMPLEST if name in names)
    error = {name: np.abs(unseen[name] / latency_ms - 1) for name in names}
    gains = {name: error[simplest] - error[name] for name in names}
    spread = {name: float(gain.std(ddof=1)) / len(gain) ** 0.5 for name, gain in gains.items()}
    return [name for name in names if name == simplest or gains[name].mean() > PROOF * spread[name]]


def _cross_val_predict(make: ModelFactory, x: np.ndarray, latency_ms: np.ndarray) -> np.ndarray:
    """Cross-validated predictions: each row, already in random order, by a model that was fitted without it."""
    folds = min(len(x), FOLDS_SMALL_SAMPLE) if len(x) <= SMALL_SAMPLE else FOLDS
    fold = np.arange(len(x)) % folds
    predicted = np.zeros(len(x))
    for k in range(folds):
        predicted[fold == k] = make().fit(x[fold != k], latency_ms[fold != k]).predict(x[fold == k])
    return np.maximum(predicted, 1e-9)


def _conformal_bound(residuals: np.ndarray) -> float:
    rank = math.ceil((len(residuals) + 1) * COVERAGE)
    return float(np.sort(residuals)[min(rank, len(residuals)) - 1])

"""Surrogates: they learn, have calibrated standard deviations, and the best of them is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

from predictors.gaussian_process import JITTER, GaussianProcess
from predictors.surrogates import (
    SURROGATES,
    FittedSurrogate,
    Surrogate,
    cross_validate,
    log_origin,
    posterior_means,
)

RNG = np.random.default_rng(0)
X = RNG.random((80, 6))
LINE = X @ [1.0, -2.0, 0.5, 0.0, 0.0, 0.0] + RNG.normal(0, 0.02, 80)
STEPS = np.floor(X[:, 0] * 4) * (X[:, 1] > 0.5) + RNG.normal(0, 0.02, 80)
PRODUCT = np.sin(4 * X[:, 0]) * X[:, 1]


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_learn_a_line_and_give_standard_deviations(name: str) -> None:
    model = SURROGATES[name]().fit(X, LINE)
    mean, deviation = model.predict(X)
    assert np.corrcoef(mean, LINE)[0, 1] > 0.95 and (deviation >= 0).all()
    assert np.array_equal(SURROGATES[name]().fit(X, LINE).predict(X)[0], mean)


def test_the_gaussian_process_equals_scikit_learns() -> None:
    ours = GaussianProcess().fit(X, PRODUCT)
    linear, curved, noise = np.exp(ours._theta[-3:])
    root = np.exp(ours._theta[:-3] / 2)
    kernel = ConstantKernel(linear) * DotProduct(0.0) + ConstantKernel(curved) * Matern(1.0, nu=2.5)
    reference = GaussianProcessRegressor(kernel + WhiteKernel(noise + JITTER), optimizer=None, alpha=0.0)
    centre, scale = PRODUCT.mean(), PRODUCT.std()
    reference.fit((X - X.mean(0)) * root, (PRODUCT - centre) / scale)
    new = RNG.random((20, 6))
    mean, deviation = reference.predict((new - X.mean(0)) * root, return_std=True)
    our_mean, spread = ours.predict(new)
    assert np.allclose(our_mean, mean * scale + centre, atol=1e-6) and (ours.mean(new) == our_mean).all()
    assert np.allclose(spread, np.sqrt(np.maximum(deviation**2 - noise - JITTER, 0)) * scale, atol=1e-3)


def test_the_gaussian_process_has_the_right_gradient_and_finds_relevant_features() -> None:
    model = GaussianProcess().fit(X, PRODUCT)
    theta = 0.7 * model._theta
    wrong = check_grad(lambda t: model._loss(t)[0], lambda t: model._loss(t)[1], theta)
    assert wrong < 1e-4 * np.linalg.norm(model._loss(theta)[1])
    relevance = model._theta[:6]
    assert relevance[:2].min() > relevance[2:].max() + 1


def test_an_update_conditions_on_new_points_with_the_kernel_as_it_was() -> None:
    model = GaussianProcess().fit(X[:40], PRODUCT[:40])
    before = model._theta.copy()
    mean, _ = model.update(X, PRODUCT).predict(X)
    assert np.array_equal(model._theta, before) and np.abs(mean - PRODUCT).max() < 0.1


def test_cross_validation_prefers_a_line_for_a_line_only() -> None:
    line, steps = cross_validate(X, LINE), cross_validate(X, STEPS)
    assert line["ridge"].error < line["forest"].error and steps["forest"].error < steps["ridge"].error
    assert (
        FittedSurrogate(X, STEPS).name
        == min(cross_validate(X, FittedSurrogate(X, STEPS).transform(STEPS)).items(), key=_error)[0]
    )
    assert "boosting" not in line and "boosting" in cross_validate(RNG.random((120, 2)), RNG.random(120))


def _error(item: tuple[str, object]) -> float:
    return item[1].error  # type: ignore[attr-defined, no-any-return]


def test_standard_deviations_are_calibrated_to_the_cross_validated_errors() -> None:
    surrogate = FittedSurrogate(X, STEPS)
    score = cross_validate(X, surrogate.transform(STEPS))[surrogate.name]
    _, spread = SURROGATES[surrogate.name]().fit(X, surrogate.transform(STEPS)).predict(X)
    assert abs(score.calibration - 1) > 0.2 and np.allclose(
        surrogate.predict(X)[1], np.maximum(spread * score.calibration, 1e-6)
    )


def test_the_transformation_is_monotone_and_gives_probabilities() -> None:
    surrogate = FittedSurrogate(X, np.exp(5 * LINE))
    assert (np.diff(surrogate.transform(np.linspace(-1, 200, 50))) > 0).all()
    probabilities = surrogate.probability_below(X, np.exp(5 * np.quantile(LINE, [0.0, 0.5, 1.0])))
    assert probabilities.shape == (80, 3) and (np.diff(probabilities, axis=1) >= 0).all()
    best, worst = np.argmin(LINE), np.argmax(LINE)
    assert probabilities[best, 1] > 0.9 and probabilities[worst, 1] < 0.1


def test_heavy_tails_are_seen_and_others_are_left_alone() -> None:
    losses = RNG.uniform(0.2, 1.2, 80)
    assert log_origin(losses) is None and log_origin(-losses) is None and log_origin(np.ones(80)) is None
    assert log_origin(np.exp(12 * losses)) == 0.0
    below = np.exp(12 * losses) - 1000.0
    assert log_origin(below) == pytest.approx(2 * below.min() - np.median(below))


@pytest.mark.parametrize("name", SURROGATES)
def test_values_with_large_errors_count_less(name: str) -> None:
    errors, values = np.full(80, 0.01), LINE.copy()
    errors[::3], values[::3] = 1.0, LINE[::3] + RNG.normal(0, 1.0, 27)
    truth = X @ [1.0, -2.0, 0.5, 0.0, 0.0, 0.0]

    def error(model: Surrogate) -> float:
        return float(np.abs(model.predict(X)[0] - truth).mean())

    assert error(SURROGATES[name]().fit(X, values, errors)) < 0.75 * error(SURROGATES[name]().fit(X, values))


@pytest.mark.parametrize("name", SURROGATES)
def test_values_of_which_many_have_hardly_an_error_are_learned(name: str) -> None:
    errors = np.where(np.arange(80) < 39, 1e-3, 0.1)
    mean, _ = SURROGATES[name]().fit(X, LINE, errors).predict(X)
    assert np.corrcoef(mean, LINE)[0, 1] > 0.9


def test_the_lucky_are_drawn_back_to_what_is_likely() -> None:
    errors = np.full(80, 0.3)
    values = LINE + np.random.default_rng(1).normal(0, errors)
    expected = posterior_means(X, values, errors)
    best = np.argsort(values)[:8]
    assert (LINE - values)[best].mean() > 0.15 > abs((LINE - expected)[best].mean())
    assert np.abs(expected - LINE).mean() < 0.6 * np.abs(values - LINE).mean()
    assert posterior_means(X, values, np.zeros(80)) is values
    assert posterior_means(X[:9], values[:9], errors[:9]).tolist() == values[:9].tolist()


def test_equal_values_are_no_error() -> None:
    mean, deviation = FittedSurrogate(X, np.ones(80)).predict(X)
    assert np.isfinite(mean).all() and (deviation > 0).all()

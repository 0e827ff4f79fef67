"""Latency predictors of tables: ten measurements with a prior, data frames, intervals, and invalid input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from predictors import LatencyPredictor
from predictors.latency.errors import errors
from predictors.latency.models import models_for
from predictors.latency.predictor import _best, _chosen_without, without_unproven
from predictors.latency.regressions import LogGaussianProcess, PowerLaw
from predictors.latency.robust import NORMAL_DF
from predictors.latency.transfer import SourceDevices, TransferGP
from search_spaces import InputError

NAMES = ["layers", "width", "heads"]


def rows(n: int, seed: int = 0) -> np.ndarray:
    """Layers, width and heads of n random models."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(2, 13, n), rng.integers(1, 9, n) * 128, rng.integers(1, 13, n)], axis=1).astype(
        float
    )


def larger(n: int, seed: int) -> np.ndarray:
    """Models, most of which are larger than those of `rows`."""
    return rows(n, seed) * [3, 2, 2] + [8, 256, 4]


def device(x: np.ndarray, launch: float, product: float, attention: float, seed: int | None = None) -> np.ndarray:
    """Milliseconds on a device: time for each launch, each product and each head, and 1 % of noise."""
    layers, width, heads = x.T
    exact = 1 + layers * (launch + product * width**2 / 1e5 + attention * heads)
    return exact if seed is None else exact * np.random.default_rng(seed).normal(1, 0.01, len(x))


def other_devices() -> list[LatencyPredictor]:
    laws = ((1.0, 0.2, 0.3), (0.1, 1.0, 0.1), (0.5, 0.5, 0.05))
    return [LatencyPredictor.fit(rows(120, k), device(rows(120, k), *law, seed=k)) for k, law in enumerate(laws)]


@pytest.fixture(scope="module")
def prior() -> list[LatencyPredictor]:
    return other_devices()


@pytest.mark.parametrize("seed", range(3))
def test_a_noisy_device_is_hardly_worse_predicted_than_another_one_scaled(
    seed: int, prior: list[LatencyPredictor]
) -> None:
    x, unseen, law = rows(10, 20 + seed), rows(400, 8), (1.0, 0.2, 0.3)
    measured = 3 * device(x, *law) * np.random.default_rng(seed).lognormal(0, 0.08, 10)
    truth = 3 * device(unseen, *law)
    fitted = LatencyPredictor.fit(x, measured, prior=prior[0])
    scaled = np.exp(np.median(np.log(measured / prior[0].predict(x)))) * prior[0].predict(unseen)
    assert "scaled-prior" in fitted.report.model
    excess = np.mean(np.abs(fitted.predict(unseen) / scaled - 1))
    assert excess < 0.02 and errors(truth, fitted.predict(unseen)).mape_percent < 8


def test_a_table_of_ones_own_has_no_model_twice() -> None:
    assert "work" not in models_for(NAMES) and {"work", "additive"} <= {*models_for([*NAMES, "work: hidden"])}


def test_ten_measurements_and_other_devices_beat_ten_measurements_and_a_line(prior: list[LatencyPredictor]) -> None:
    law, x, unseen = (0.3, 0.6, 0.2), rows(10, 7), rows(400, 8)
    truth = device(unseen, *law)
    with_prior = errors(truth, LatencyPredictor.fit(x, device(x, *law, seed=7), prior=prior).predict(unseen))
    without_prior = errors(truth, LatencyPredictor.fit(x, device(x, *law, seed=7)).predict(unseen))
    volume = (x[:, 0] * x[:, 1] ** 2, unseen[:, 0] * unseen[:, 1] ** 2)
    line = errors(truth, np.polyval(np.polyfit(volume[0], device(x, *law, seed=7), 1), volume[1]))
    assert with_prior.mape_percent < 0.5 * line.mape_percent and with_prior.mape_percent < without_prior.mape_percent
    assert with_prior.kendall_tau > line.kendall_tau


def test_heavy_tailed_errors_reduce_the_weight_of_disturbed_measurements(
    prior: list[LatencyPredictor],
) -> None:
    law, unseen, mape = (0.3, 0.1, 0.2), rows(400, 8), dict[str, list[float]]()
    source = np.concatenate([device.features for device in prior])
    for seed in (7, 8, 9):
        x = rows(10, seed)
        latency_ms = device(x, *law, seed=seed)
        latency_ms[[2, 7]] *= [1.3, 1.2]
        for name, tails in {"any": TransferGP.tails, "normal": ((NORMAL_DF, 0.0),)}.items():
            model = TransferGP(SourceDevices([device.predict for device in prior], source))
            model.tails = tails
            error = errors(device(unseen, *law), model.fit(x, latency_ms).predict(unseen))
            mape.setdefault(name, []).append(error.mape_percent)
    assert np.mean(mape["any"]) < 0.8 * np.mean(mape["normal"])


def test_a_power_law_extrapolates_to_models_larger_than_those_of_the_prior() -> None:
    law, mape = (1.0, 0.2, 0.3), {odds: list[float]() for odds in (TransferGP.power_law_log_odds, -np.inf)}
    for seed in range(4):
        small, x, unseen = rows(120, seed), larger(10, seed + 20), larger(400, 8)
        source = LogGaussianProcess().fit(small, device(small, *law, seed=seed) ** 0.8)
        for odds, errors_of_odds in mape.items():
            model = TransferGP(SourceDevices([source.predict], small))
            model.power_law_log_odds = odds
            model.fit(x, device(x, *law, seed=seed + 20) ** 0.8)
            errors_of_odds.append(errors(device(unseen, *law) ** 0.8, model.predict(unseen)).mape_percent)
    assert np.mean(mape[TransferGP.power_law_log_odds]) < 0.8 * np.mean(mape[-np.inf])


def test_a_power_law_extrapolates_also_with_columns_that_are_zero_somewhere() -> None:
    def truth(x: np.ndarray) -> np.ndarray:
        return 0.1 * x[:, 0] ** 0.9 * x[:, 1] ** 1.5 * np.exp(0.3 * x[:, 3])

    x, far = (np.column_stack([table, np.arange(len(table)) % 2]) for table in (rows(60), larger(60, 1)))
    np.testing.assert_allclose(PowerLaw().fit(x, truth(x)).predict(far), truth(far), rtol=0.02)


def test_with_many_outliers_a_robust_model_is_chosen() -> None:
    law, x, unseen = (0.3, 0.0, 0.2), rows(150, 7), rows(400, 8)
    latency_ms = device(x, *law, seed=7)
    latency_ms[np.random.default_rng(0).random(150) < 0.2] *= 1.25
    predictor = LatencyPredictor.fit(x, latency_ms)
    assert predictor.report.model == "robust-products"
    assert errors(device(unseen, *law), predictor.predict(unseen)).mape_percent < 1


def test_a_data_frame_is_read_by_its_column_names() -> None:
    frame = pd.DataFrame(rows(40), columns=NAMES)
    predictor = LatencyPredictor.fit(frame, device(rows(40), 1, 1, 1))
    assert predictor.names == tuple(NAMES)
    mixed = frame[NAMES[::-1]].assign(more=1)
    assert (predictor.predict(mixed) == predictor.predict(rows(40))).all()
    with pytest.raises(InputError, match="heads"):
        predictor.predict(frame[NAMES[:2]])


def test_a_prior_is_read_by_the_names_of_its_columns() -> None:
    law, x, unseen = (0.3, 0.6, 0.2), rows(10, 7), rows(400, 8)
    frame = pd.DataFrame(rows(120), columns=NAMES)
    source = LatencyPredictor.fit(frame, device(rows(120), 1.0, 0.2, 0.3, seed=1))
    new, turned = pd.DataFrame(x, columns=NAMES), NAMES[::-1]
    there = LatencyPredictor.fit(new[turned], device(x, *law, seed=7), prior=source).predict(
        pd.DataFrame(unseen, columns=NAMES)
    )
    here = LatencyPredictor.fit(x, device(x, *law, seed=7), prior=source).predict(unseen)
    np.testing.assert_allclose(there, here, rtol=1e-3)
    with pytest.raises(InputError, match=r"same features.*'depth'"):
        LatencyPredictor.fit(new.rename(columns={"layers": "depth"}), device(x, *law), prior=source)


def test_a_useless_prior_is_ignored() -> None:
    law, x, unseen = (0.3, 0.6, 0.2), rows(15, 7), rows(400, 8)
    noise = LatencyPredictor.fit(rows(120), np.exp(np.random.default_rng(0).normal(0, 1, 120)))
    without_prior = LatencyPredictor.fit(x, device(x, *law, seed=7))
    with_prior = LatencyPredictor.fit(x, device(x, *law, seed=7), prior=noise)
    assert with_prior.report.model == without_prior.report.model
    assert (with_prior.predict(unseen) == without_prior.predict(unseen)).all()


def test_the_interval_contains_nine_in_ten() -> None:
    predictor = LatencyPredictor.fit(rows(150), device(rows(150), 1, 0.5, 0.2, seed=1))
    x = rows(400, 5)
    inside = np.abs(device(x, 1, 0.5, 0.2, seed=2) - predictor.predict(x)) <= predictor.spread_ms(x)
    assert 0.8 < inside.mean() <= 1


def test_the_learning_curve_falls_and_ends_at_the_number_of_measurements() -> None:
    curve = LatencyPredictor.fit(rows(130), device(rows(130), 1, 0.5, 0.2, seed=1)).learning_curve()
    assert list(curve) == [10, 30, 100]
    assert curve[100].mape_percent < curve[10].mape_percent


@pytest.mark.parametrize("n", [10, 25])
def test_constant_features_and_latencies_and_few_measurements_are_predicted(n: int) -> None:
    x = np.column_stack([rows(n), np.full(n, 1e9), np.zeros(n)])
    for latency_ms in (np.full(n, 5.0), device(x[:, :3], 1, 1, 1)):
        predictor = LatencyPredictor.fit(x, latency_ms)
        other = np.column_stack([rows(50, 3), np.full(50, 1e9), np.zeros(50)])
        assert np.isfinite(predictor.predict(other)).all() and (predictor.predict(other) > 0).all()
        assert np.isfinite(predictor.spread_ms(other)).all()


@pytest.mark.parametrize(
    ("features", "latency_ms", "law"),
    [
        (rows(9), np.ones(9), "at least 10"),
        (rows(12), np.ones(11), "one latency"),
        (rows(12), np.zeros(12), "above zero"),
        (np.full((12, 2), np.nan), np.ones(12), "finite"),
        ([["a"]] * 12, np.ones(12), "numbers"),
        (np.ones((12, 2, 2)), np.ones(12), "shape"),
        (np.ones((12, 0)), np.ones(12), "shape"),
        (pd.DataFrame(np.ones((12, 2)), columns=["a", "a"]), np.ones(12), "different name"),
    ],
)
def test_invalid_measurements_are_refused(features: Any, latency_ms: Any, law: str) -> None:
    with pytest.raises(InputError, match=law):
        LatencyPredictor.fit(features, latency_ms)


@pytest.mark.parametrize(
    ("options", "law"),
    [
        ({"baselines": {"macs": np.ones(11)}}, "`macs` has 11"),
        ({"bound_ms": 0.0}, "`bound_ms` must be above zero"),
        ({"n_active": -1}, "`n_active` must be at least 0"),
        ({"n_active": 12}, "below the 12 measurements"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], law: str) -> None:
    with pytest.raises(InputError, match=law):
        LatencyPredictor.fit(rows(12), np.ones(12), **options)


def test_a_prior_of_other_features_is_refused_and_four_measurements_suffice_with_one(
    prior: list[LatencyPredictor],
) -> None:
    x = rows(4, 9)
    assert LatencyPredictor.fit(x, device(x, 1, 1, 1), prior=prior[0]).predict(x).shape == (4,)
    with pytest.raises(InputError, match="same features"):
        LatencyPredictor.fit(x[:, :2], device(x, 1, 1, 1), prior=prior)
    with pytest.raises(InputError, match="at least 4"):
        LatencyPredictor.fit(x[:3], np.ones(3), prior=prior)


def test_a_model_with_a_prior_must_prove_to_be_better_than_that_device_scaled() -> None:
    measured = np.full(10, 2.0)
    exact, noisy = measured.copy(), measured * np.tile([1.02, 0.98], 5)
    lucky = noisy.copy()
    lucky[:2] = 2.0, 2.0 * (1 - 0.035)  # 2 % better in one row, 1.5 % worse in another
    names = ["prior-process", "scaled-prior"]
    assert without_unproven(names, {"prior-process": exact, "scaled-prior": noisy}, measured) == names
    worse = measured * 1.05
    assert without_unproven(names, {"prior-process": worse, "scaled-prior": noisy}, measured) == ["scaled-prior"]
    assert without_unproven(names, {"prior-process": lucky, "scaled-prior": noisy}, measured) == ["scaled-prior"]


def test_few_measurements_alone_must_prove_a_model_to_be_better_than_a_weighted_sum() -> None:
    measured = np.full(10, 2.0)
    noisy = measured * np.tile([1.02, 0.98], 5)
    lucky = noisy.copy()
    lucky[:2] = 2.0, 2.0 * (1 - 0.035)
    unseen = {"additive": noisy, "network": lucky, "gaussian-process": measured}
    assert _best(unseen, measured) == ["gaussian-process", "additive"]
    assert _best({**unseen, "scaled-prior": measured * 10}, measured) == ["gaussian-process", "additive"]
    both = {"additive": noisy, "scaled-prior": measured * 1.03}
    assert _best(both, measured) == ["additive", "scaled-prior"], "neither few rows nor another device decide alone"
    many = {name: np.tile(predicted, 4) for name, predicted in unseen.items()}
    assert _best(many, np.tile(measured, 4)) == ["gaussian-process"], "with many, cross-validation decides"


def test_the_interval_of_few_measurements_does_not_believe_the_luck_of_the_chosen_models() -> None:
    """Thirty models that err by chance: those that a row has not helped to choose err more in it."""
    measured, rng = np.full(10, 2.0), np.random.default_rng(0)
    names = ["additive", *(f"model {n}" for n in range(30))]
    unseen = {name: measured * np.exp(rng.normal(0, 0.1, 10)) for name in names}
    unseen["additive"] = measured * 2
    best = _best(unseen, measured)
    seen = np.exp(np.mean([np.log(unseen[name]) for name in best], axis=0))
    error, believed = (np.abs(each / measured - 1).mean() for each in (_chosen_without(unseen, measured, best), seen))
    assert error > 1.1 * believed

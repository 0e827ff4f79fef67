"""Accuracy: how far predictions of latency are from measurements, everywhere and near what a search asks for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BAND = 0.2
"""Measurements within this share of a bound on the latency are near it."""

NEAR_EQUAL = 0.1
"""Without a bound: pairs of measurements that differ by at most this share are near each other."""


@dataclass(frozen=True)
class Errors:
    """How far predictions are from measurements; ``kendall_tau`` is 0 where all values are equal."""

    mape_percent: float
    rmse_ms: float
    kendall_tau: float


def errors(measured: np.ndarray, predicted: np.ndarray) -> Errors:
    """Compares (n,) measured with (n,) predicted milliseconds."""
    from scipy.stats import kendalltau

    constant = len(set(measured.tolist())) < 2 or len(set(predicted.tolist())) < 2
    tau = 0.0 if constant else float(kendalltau(measured, predicted).statistic)
    return _errors(measured, predicted, tau)


def near(measured: np.ndarray, around_ms: float) -> np.ndarray:
    """Which of (n,) measurements, in milliseconds, are near a bound."""
    return np.abs(measured / around_ms - 1) <= BAND


def count_near(measured: np.ndarray, around_ms: float | None) -> int:
    """How many measurements are near a bound; without one, how many pairs of them are near each other."""
    return len(near_equal_pairs(measured)[0]) if around_ms is None else int(near(measured, around_ms).sum())


def errors_near(measured: np.ndarray, predicted: np.ndarray, around_ms: float | None) -> Errors:
    """As `errors`, of the measurements near a bound; without one, of all, but Kendall tau of near-equal pairs only."""
    if around_ms is not None:
        here = near(measured, around_ms)
        return errors(measured[here], predicted[here])
    first, second = near_equal_pairs(measured)
    agree = np.sign(measured[first] - measured[second]) * np.sign(predicted[first] - predicted[second])
    return _errors(measured, predicted, float(agree.mean()) if len(agree) else 0.0)


def near_equal_pairs(measured: np.ndarray, share: float = NEAR_EQUAL) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of measurements that differ, but by at most a share of the smaller: two rows of indices."""
    first, second = np.triu_indices(len(measured), 1)
    low, high = (choose(measured[first], measured[second]) for choose in (np.minimum, np.maximum))
    alike = (high > low) & (high <= low * (1 + share))
    return first[alike], second[alike]


def _errors(measured: np.ndarray, predicted: np.ndarray, tau: float) -> Errors:
    off = predicted - measured
    if not len(off):
        return Errors(0.0, 0.0, tau)
    return Errors(float(np.mean(np.abs(off) / measured) * 100), float(np.sqrt(np.mean(off**2))), tau)

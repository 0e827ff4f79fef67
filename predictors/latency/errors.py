"""Errors of latency predictions: MAPE, RMSE and Kendall tau, of all measurements and of those near a bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEAR_BOUND = 0.2
"""A measurement is near a bound on the latency if it differs from it by at most this share."""

NEAR_EQUAL = 0.1
"""Two measurements are near-equal if they differ by at most this share."""


@dataclass(frozen=True)
class Errors:
    """Errors of predictions; ``kendall_tau`` is 0 if all measurements or all predictions are equal."""

    mape_percent: float
    rmse_ms: float
    kendall_tau: float


def errors(measured: np.ndarray, predicted: np.ndarray) -> Errors:
    """Errors of (n,) predicted milliseconds against (n,) measured ones."""
    from scipy.stats import kendalltau

    constant = len(set(measured.tolist())) < 2 or len(set(predicted.tolist())) < 2
    tau = 0.0 if constant else float(kendalltau(measured, predicted).statistic)
    return _errors(measured, predicted, tau)


def near_bound(measured: np.ndarray, bound_ms: float) -> np.ndarray:
    """Mask (n,) of the measurements, in milliseconds, that are near a bound."""
    return np.abs(measured / bound_ms - 1) <= NEAR_BOUND


def count_near_bound(measured: np.ndarray, bound_ms: float | None) -> int:
    """Number of measurements near a bound; without a bound, number of near-equal pairs."""
    return len(near_equal_pairs(measured)[0]) if bound_ms is None else int(near_bound(measured, bound_ms).sum())


def errors_near_bound(measured: np.ndarray, predicted: np.ndarray, bound_ms: float | None) -> Errors:
    """Errors of the measurements near a bound; without a bound, of all, with Kendall tau of near-equal pairs only."""
    if bound_ms is not None:
        mask = near_bound(measured, bound_ms)
        return errors(measured[mask], predicted[mask])
    first, second = near_equal_pairs(measured)
    agreement = np.sign(measured[first] - measured[second]) * np.sign(predicted[first] - predicted[second])
    return _errors(measured, predicted, float(agreement.mean()) if len(agreement) else 0.0)


def near_equal_pairs(measured: np.ndarray, share: float = NEAR_EQUAL) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of measurements that differ, by at most a share of the smaller: two arrays of indices."""
    first, second = np.triu_indices(len(measured), 1)
    low, high = (choose(measured[first], measured[second]) for choose in (np.minimum, np.maximum))
    is_near = (high > low) & (high <= low * (1 + share))
    return first[is_near], second[is_near]


def _errors(measured: np.ndarray, predicted: np.ndarray, tau: float) -> Errors:
    residuals = predicted - measured
    if not len(residuals):
        return Errors(0.0, 0.0, tau)
    return Errors(float(np.mean(np.abs(residuals) / measured) * 100), float(np.sqrt(np.mean(residuals**2))), tau)

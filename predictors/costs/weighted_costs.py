"""WeightedCosts: predicts a measured cost, such as peak memory, from exact costs of the same subnetwork."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from predictors.costs.analytic import AnalyticCosts
from predictors.measurement.workload import Workload
from search_spaces import InputError, SubnetConfig

TERMS = ("size_mb", "peak_activation_mb", "macs")
"""What memory, energy, loading and a first pass grow with: weights, activations, products."""
MIN_FOOTPRINTS = 8
"""Measured subnetworks on which the weights are fitted."""


@dataclass(frozen=True)
class WeightedCosts:
    """A constant and a sum of exact costs, each with a weight of at least zero, fitted to measurements.

    A larger subnetwork is so never predicted to need less. Create it with `fit`.

    Attributes:
        counts: Counts the costs.
        workload: The workload of the measurements.
        weights: (1 + terms,): the constant, then the weight of each of `TERMS`.
        residual_bound: Half the width of an interval that holds 90 % of measurements, relative to a prediction; each
            measurement is predicted by weights that were fitted without it.
    """

    counts: AnalyticCosts
    workload: Workload
    weights: np.ndarray
    residual_bound: float

    @classmethod
    def fit(
        cls, counts: AnalyticCosts, workload: Workload, subnets: Sequence[SubnetConfig], measured: Sequence[float]
    ) -> WeightedCosts:
        """Fits the weights with the least squared relative error.

        Args:
            counts: Counts the exact costs.
            workload: The workload of the measurements.
            subnets: The measured subnetworks.
            measured: (n,) what was measured.

        Raises:
            InputError: If there are fewer than 8 measurements, or one is not above zero.
        """
        values = np.asarray(measured, dtype=float)
        if len(values) < MIN_FOOTPRINTS or not (values > 0).all():
            raise InputError(
                f"a measured cost must be above zero in at least {MIN_FOOTPRINTS} measured subnetworks, but got "
                f"{len(values)}, the least {values.min(initial=np.inf):g}; leave the cost out."
            )
        design = _design(counts, workload, subnets)
        rows = range(len(values))
        unseen = [float(_solve(np.delete(design, i, 0), np.delete(values, i)) @ design[i]) for i in rows]
        residuals = np.abs(values / np.maximum(unseen, 1e-9) - 1)
        return cls(counts, workload, _solve(design, values), float(np.quantile(residuals, 0.9, method="higher")))

    def predict(self, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """Predictions: (len(subnets),), in the unit of the measurements."""
        return np.asarray(_design(self.counts, self.workload, subnets) @ self.weights)


def _design(counts: AnalyticCosts, workload: Workload, subnets: Sequence[SubnetConfig]) -> np.ndarray:
    """A constant and the terms of each subnetwork: (n, 1 + terms)."""
    columns = counts.count(TERMS, subnets, workload)
    return np.stack([np.ones(len(subnets)), *(columns[name] for name in TERMS)], axis=1)


def _solve(design: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weights of at least zero with the least squared relative error."""
    from scipy.optimize import nnls

    scale = np.maximum(design.max(axis=0), 1e-12)
    return np.asarray(nnls(design / scale / values[:, None], np.ones(len(values)))[0] / scale)

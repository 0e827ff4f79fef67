"""Throughput: samples per second of calls one after the other, predicted from the latency of a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from predictors.latency.subnet_predictor import SubnetPredictor
from predictors.measurement.workload import Workload
from search_spaces import SubnetConfig


class CostPredictor(Protocol):
    """Predicts one cost of subnetworks under one workload."""

    @property
    def residual_bound(self) -> float:
        """Half the width of an interval that holds 90 % of measurements, relative to a prediction."""
        ...

    def predict(self, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """Predictions: (len(subnets),), in the unit of the cost."""
        ...


@dataclass(frozen=True)
class Throughput:
    """Samples per second under a workload.

    Attributes:
        latency: Predicts the latency of a call.
    """

    latency: SubnetPredictor

    @property
    def residual_bound(self) -> float:
        """Half the width of an interval that holds 90 % of measurements, relative to a prediction."""
        return self.latency.residual_bound

    def predict(self, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """Samples per second: (len(subnets),)."""
        return samples_per_second(self.latency.workload, self.latency.predict(subnets))


def samples_per_second(workload: Workload, latency_ms: np.ndarray) -> np.ndarray:
    """Samples per second of calls of the workload's batch that take so many milliseconds each: (n,) -> (n,)."""
    return workload.batch_size / latency_ms * 1e3

"""Throughput: samples or tokens per second of calls one after the other, predicted from the latency of a call."""

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
    """What is computed in a second under a workload.

    Attributes:
        name: ``samples_per_second`` or ``tokens_per_second``.
        latency: Predicts the latency of a call.
    """

    name: str
    latency: SubnetPredictor

    @property
    def residual_bound(self) -> float:
        """Half the width of an interval that holds 90 % of measurements, relative to a prediction."""
        return self.latency.residual_bound

    def predict(self, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """Samples or tokens per second: (len(subnets),)."""
        return per_second(self.name, self.latency.workload, self.latency.predict(subnets))


def per_second(name: str, workload: Workload, latency_ms: np.ndarray) -> np.ndarray:
    """Samples or tokens per second of calls of a workload that take so many milliseconds each: (n,) -> (n,).

    Args:
        name: ``samples_per_second``, or ``tokens_per_second``: a call of phase ``decode`` computes one token of each
            sample, any other call all of them.
        workload: Batch size, tokens of a sample and phase.
        latency_ms: Latencies of a call.
    """
    tokens = 1 if name == "samples_per_second" or workload.phase == "decode" else workload.sequence_length or 1
    return tokens * workload.batch_size / latency_ms * 1e3

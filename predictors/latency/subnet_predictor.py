"""SubnetPredictor: a latency predictor for the subnetworks of one search space under one workload."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from predictors.latency.features import depth_only, feature_names, features
from predictors.latency.predictor import LatencyPredictor
from predictors.latency.report import PredictorReport
from predictors.measurement.workload import Workload
from search_spaces import InputError, SearchSpace, SubnetBatch, SubnetConfig
from search_spaces.errors import DAMAGE, described

FILE = "predictor.json"

CHUNK_SIZE = 16_384
"""Subnetworks whose features are computed at once; a million would fill the memory."""


class SubnetPredictor:
    """Predicts the latency of the subnetworks of one search space under one workload.

    Create it with `fit` or `load`.

    Attributes:
        space: The search space.
        subnets: The measured subnetworks.
        workload: The workload of the measurements.
        latency: The predictor on the features of subnetworks.
    """

    def __init__(
        self, space: SearchSpace, subnets: Sequence[SubnetConfig], workload: Workload, latency: LatencyPredictor
    ) -> None:
        self.space, self.subnets, self.workload, self.latency = space, list(subnets), workload, latency

    @classmethod
    def fit(
        cls,
        space: SearchSpace,
        subnets: Sequence[SubnetConfig],
        latency_ms: Sequence[float] | np.ndarray,
        workload: Workload,
        *,
        macs: Sequence[float],
        baselines: Mapping[str, Sequence[float] | np.ndarray] | None = None,
        prior: Sequence[SubnetPredictor] = (),
        bound_ms: float | None = None,
        n_active: int = 0,
        seed: int = 0,
    ) -> SubnetPredictor:
        """Fits a `LatencyPredictor` on the features of subnetworks.

        Args:
            space: The search space of the subnetworks.
            subnets: The measured subnetworks.
            latency_ms: Latency of each in milliseconds.
            workload: The workload of all measurements.
            macs: Multiply-accumulates of each, for the baseline of that name.
            baselines: Further baselines: name -> one number per subnetwork.
            prior: Predictors of the same search space on other devices or workloads.
            bound_ms: Bound on the latency; errors near it are reported as well.
            n_active: Number of the last subnetworks that were selected by active learning; these are never held out.
            seed: Seed of the held-out measurements and of the folds.

        Raises:
            InputError: Like `LatencyPredictor.fit`, and if a prior has other columns.
        """
        if not len(subnets) == len(latency_ms) == len(macs):
            raise InputError(
                f"every subnetwork needs one latency and one MAC count, but got {len(subnets)} subnetworks, "
                f"{len(latency_ms)} latencies and {len(macs)} MAC counts."
            )
        names, table = feature_names(space), features(space, subnets)
        for device in prior:
            if device.latency.names != names:
                raise InputError("a prior must be of the same search space, but its columns differ; leave it out.")
        baselines = {"depth-only": depth_only(table), "macs": macs, **(baselines or {})}
        devices = [device.latency for device in prior]
        options: dict[str, Any] = {"baselines": baselines, "bound_ms": bound_ms, "n_active": n_active}
        latency = LatencyPredictor.fit(table, latency_ms, names=names, prior=devices, **options, seed=seed)
        return cls(space, subnets, workload, latency)

    @property
    def report(self) -> PredictorReport:
        """Errors on held-out measurements."""
        return self.latency.report

    @property
    def residual_bound(self) -> float:
        """Half the width of an interval that holds 90 % of measurements, relative to a prediction."""
        return self.latency.report.residual_bound

    @property
    def latency_ms(self) -> np.ndarray:
        """Latency of each measured subnetwork: (len(subnets),) milliseconds."""
        return self.latency.latency_ms

    def predict(self, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """Predicted latencies: (len(subnets),) milliseconds; fastest for a `SubnetBatch`."""
        batch = SubnetBatch.from_subnets(subnets, self.space.parent.num_hidden_layers)
        chunks = [batch[start : start + CHUNK_SIZE] for start in range(0, len(batch), CHUNK_SIZE)]
        return np.concatenate([np.zeros(0), *(self.latency.predict(features(self.space, chunk)) for chunk in chunks)])

    def spread_ms(self, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """Half the width of an interval that contains 90 % of measurements: (len(subnets),) milliseconds."""
        return self.predict(subnets) * self.residual_bound

    def save(self, folder: str | Path) -> None:
        """Writes ``predictor.json``: the measurements, the chosen models' names and the report; no pickled code."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        data = {
            "workload": self.workload.to_dict(),
            "space": {**self.space.arguments(), "parent": self.space.parent.to_dict()},
            "subnets": [subnet.to_dict() for subnet in self.subnets],
            "latency": _latency_to_dict(self.latency),
        }
        partial = folder / f"{FILE}.partial"
        partial.write_text(json.dumps(data))
        os.replace(partial, folder / FILE)

    @classmethod
    def load(cls, folder: str | Path, workload: Workload | None = None) -> SubnetPredictor:
        """Reads what `save` wrote and refits the chosen model, which gives the same predictions.

        Args:
            folder: The folder of ``predictor.json``.
            workload: The workload that the predictor must have; None accepts any.

        Raises:
            InputError: If the file is missing, incomplete, or for another workload.
        """
        path = Path(folder) / FILE
        try:
            data = json.loads(path.read_bytes())
            stored = Workload.from_dict(data["workload"])
            space = SearchSpace(**{**data["space"], "parent": SubnetConfig.from_dict(data["space"]["parent"])})
            subnets = [SubnetConfig.from_dict(subnet) for subnet in data["subnets"]]
            latency = _latency_from_dict(data["latency"])
            if latency.names != feature_names(space):
                raise ValueError("its columns are not those of its search space")
        except (OSError, *DAMAGE) as error:
            raise InputError(
                f"`{path}` must hold a complete predictor, but it does not ({described(error)}); delete it and "
                "profile again."
            ) from error
        if workload is not None and workload != stored:
            raise InputError(
                f"`{path}` must predict for the workload ({workload}), but it does for ({stored}); profile again."
            )
        return cls(space, subnets, stored, latency)


def _latency_to_dict(latency: LatencyPredictor) -> dict[str, Any]:
    return {
        "names": list(latency.names),
        "features": latency.features.tolist(),
        "latency_ms": latency.latency_ms.tolist(),
        "report": latency.report.to_dict(),
        "prior": [_latency_to_dict(device) for device in latency.prior],
    }


def _latency_from_dict(data: Mapping[str, Any]) -> LatencyPredictor:
    table, latency_ms = np.array(data["features"], dtype=float), np.array(data["latency_ms"], dtype=float)
    if table.shape != (len(latency_ms), len(data["names"])):
        raise ValueError(f"{len(latency_ms)} latencies of {table.shape} features")
    report, prior = PredictorReport.from_dict(data["report"]), [_latency_from_dict(d) for d in data["prior"]]
    return LatencyPredictor(table, latency_ms, report, names=data["names"], prior=prior)

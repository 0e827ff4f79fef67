"""SubnetPredictor: the latency predictor of the subnetworks of one space under one workload."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from predictors.latency.features import depth_only, feature_names, features
from predictors.latency.predictor import LatencyPredictor
from predictors.latency.report import PredictorReport
from predictors.measurement.workload import Workload
from predictors.store import Measurement
from search_spaces import InputError, SearchSpace, SubnetBatch, SubnetConfig

FILE = "predictor.json"

AT_ONCE = 16_384
"""Subnetworks whose features are made together: a million would fill the memory."""


class SubnetPredictor:
    """Predicts the latency of subnetworks of one space under one workload.

    Made by `fit`, `from_measurements` or `load`.

    Attributes:
        latency: The predictor on features of subnetworks.
        subnets: What was measured.
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
        around_ms: float | None = None,
        chosen: int = 0,
        seed: int = 0,
    ) -> SubnetPredictor:
        """Fits a `LatencyPredictor` on what the latency of a subnetwork depends on.

        Args:
            space: Where the subnetworks come from.
            subnets: What was measured.
            latency_ms: How long each took, in milliseconds.
            workload: On what all of them were measured.
            macs: Multiply-accumulates of each, for the baseline of that name.
            baselines: Further ones: name -> a number for each.
            prior: Predictors of the same space on other devices or workloads.
            around_ms: A bound on the latency, near which errors are reported as well.
            chosen: How many of the last subnetworks were chosen, not drawn at random; none of them is held out.
            seed: Which measurements are held out, and the folds.

        Raises:
            InputError: As `LatencyPredictor.fit` does, and if a prior is of a space with other columns.
        """
        if not len(subnets) == len(latency_ms) == len(macs):
            raise InputError(
                f"every subnetwork needs one latency and one MAC count, but got {len(subnets)} subnetworks, "
                f"{len(latency_ms)} latencies and {len(macs)} counts."
            )
        names, table = feature_names(space), features(space, subnets)
        for device in prior:
            if device.latency.names != names:
                raise InputError("a prior must be of the same space, but its columns differ; leave it out.")
        lines = {"depth-only": depth_only(table), "macs": macs, **(baselines or {})}
        devices = [device.latency for device in prior]
        about: dict[str, Any] = {"baselines": lines, "around_ms": around_ms, "chosen": chosen}
        latency = LatencyPredictor.fit(table, latency_ms, names=names, prior=devices, **about, seed=seed)
        return cls(space, subnets, workload, latency)

    @classmethod
    def from_measurements(
        cls, space: SearchSpace, measurements: Sequence[Measurement], *, macs: Sequence[float], seed: int = 0
    ) -> SubnetPredictor:
        """Fits on rows of a `MeasurementStore`.

        Raises:
            InputError: If they are not all of one workload and one device, and as `fit` does.
        """
        seen = {f"{m.workload} · {m.device_name}" for m in measurements}
        if len(seen) > 1:
            raise InputError(
                f"a latency predictor needs measurements of one workload on one device, but got {len(seen)}: "
                f"{'; '.join(sorted(seen))}; fit one predictor for each."
            )
        latency_ms = [m.timing.latency_ms for m in measurements]
        workload = measurements[0].workload if measurements else Workload()
        return cls.fit(space, [m.subnet for m in measurements], latency_ms, workload, macs=macs, seed=seed)

    @property
    def report(self) -> PredictorReport:
        """Its held-out errors."""
        return self.latency.report

    @property
    def latency_ms(self) -> np.ndarray:
        """What each measured subnetwork took: (len(subnets),) milliseconds."""
        return self.latency.latency_ms

    def predict(self, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """Latencies of subnetworks: (len(subnets),) milliseconds; fastest for a `SubnetBatch`."""
        batch = SubnetBatch.from_subnets(subnets, self.space.parent.num_hidden_layers)
        parts = [batch[start : start + AT_ONCE] for start in range(0, len(batch), AT_ONCE)]
        return np.concatenate([np.zeros(0), *(self.latency.predict(features(self.space, part)) for part in parts)])

    def spread_ms(self, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """Half the width of an interval that covers 90 % of measurements: (len(subnets),) milliseconds."""
        return self.predict(subnets) * self.latency.report.residual_bound

    def save(self, folder: str | Path) -> None:
        """Writes ``predictor.json``: the measurements, the chosen model and its report; no pickled code."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        data = {
            "workload": self.workload.to_dict(),
            "space": {**self.space.arguments(), "parent": self.space.parent.to_dict()},
            "subnets": [subnet.to_dict() for subnet in self.subnets],
            "latency": _latency_to_dict(self.latency),
        }
        unfinished = folder / f"{FILE}.partial"
        unfinished.write_text(json.dumps(data))
        os.replace(unfinished, folder / FILE)

    @classmethod
    def load(cls, folder: str | Path, workload: Workload | None = None) -> SubnetPredictor:
        """Reads back what `save` wrote and refits the chosen model, with the same predictions.

        Args:
            folder: Where ``predictor.json`` lies.
            workload: What the predictor must be for, if given.

        Raises:
            InputError: If the file is missing, cut short, or for another workload.
        """
        path = Path(folder) / FILE
        try:
            data = json.loads(path.read_text())
            found = Workload.from_dict(data["workload"])
            space = SearchSpace(**{**data["space"], "parent": SubnetConfig.from_dict(data["space"]["parent"])})
            subnets = [SubnetConfig.from_dict(subnet) for subnet in data["subnets"]]
            latency = _latency_from_dict(data["latency"])
            if latency.names != feature_names(space):
                raise ValueError("its columns are not those of its space")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"`{path}` must hold a whole saved predictor, but it does not ({error}); delete it and profile again."
            ) from error
        if workload is not None and workload != found:
            raise InputError(f"`{path}` predicts for ({found}), but got the workload ({workload}); profile again.")
        return cls(space, subnets, found, latency)


def _latency_to_dict(latency: LatencyPredictor) -> dict[str, Any]:
    return {
        "names": list(latency.names),
        "features": latency.features.tolist(),
        "latency_ms": latency.latency_ms.tolist(),
        "report": asdict(latency.report),
        "prior": [_latency_to_dict(device) for device in latency.prior],
    }


def _latency_from_dict(data: Mapping[str, Any]) -> LatencyPredictor:
    table, latency_ms = np.array(data["features"], dtype=float), np.array(data["latency_ms"], dtype=float)
    if table.shape != (len(latency_ms), len(data["names"])):
        raise ValueError(f"{len(latency_ms)} latencies of {table.shape} features")
    report, prior = PredictorReport.from_dict(data["report"]), [_latency_from_dict(d) for d in data["prior"]]
    return LatencyPredictor(table, latency_ms, report, names=data["names"], prior=prior)

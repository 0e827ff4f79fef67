"""LatencyPredictor: subnetwork -> milliseconds, fitted on measurements and carrying its held-out error."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from predictors.models import BASELINES, MODELS, Errors, LatencyModel, LeastSquares, errors, feature_names, features
from predictors.store import Measurement
from predictors.workload import Workload
from search_spaces import InputError, SearchSpace, SubnetConfig

if TYPE_CHECKING:
    from rich.table import Table

MIN_MEASUREMENTS = 10
FOLDS = 5
COVERAGE = 0.9
FILE = "predictor.json"


@dataclass(frozen=True)
class PredictorReport:
    """How good a predictor is on measurements it has not seen.

    Attributes:
        model: The chosen model, a name in `MODELS`.
        n_train: Measurements that models were fitted and chosen on.
        n_test: Measurements held out.
        cv_mape_percent: Model -> cross-validated error on the former, by which the model was chosen.
        held_out: Model or baseline -> errors on the latter.
        residual_bound: The relative residual that 90 % of held-out measurements stay below, with the correction of
            split conformal prediction.
    """

    model: str
    n_train: int
    n_test: int
    cv_mape_percent: Mapping[str, float]
    held_out: Mapping[str, Errors]
    residual_bound: float

    def table(self) -> Table:
        """Held-out errors of every model and baseline, the chosen one marked."""
        from rich.table import Table

        table = Table(title=f"latency predictor: {self.n_test} held out of {self.n_train + self.n_test} measurements")
        for column in ("model", "MAPE %", "RMSE ms", "Kendall tau"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for name, e in self.held_out.items():
            kind = "chosen" if name == self.model else "baseline" if name in BASELINES else ""
            shown = f"{name} ({kind})" if kind else name
            table.add_row(shown, f"{e.mape_percent:.1f}", f"{e.rmse_ms:.3g}", f"{e.kendall_tau:.3f}")
        return table

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PredictorReport:
        """Reads back ``dataclasses.asdict``."""
        return cls(**{**data, "held_out": {name: Errors(**e) for name, e in data["held_out"].items()}})


class LatencyPredictor:
    """Predicts the latency of subnetworks of one space under one workload.

    Made by `fit`, `from_measurements` or `load`; the constructor refits ``report.model`` on all measurements.
    """

    def __init__(
        self,
        space: SearchSpace,
        subnets: Sequence[SubnetConfig],
        latency_ms: np.ndarray,
        workload: Workload,
        report: PredictorReport,
    ) -> None:
        self.space, self.workload, self.report = space, workload, report
        self.subnets, self.latency_ms = list(subnets), latency_ms
        self._model = MODELS[report.model](feature_names(space)).fit(features(space, subnets), latency_ms)

    @classmethod
    def fit(
        cls,
        space: SearchSpace,
        subnets: Sequence[SubnetConfig],
        latency_ms: Sequence[float] | np.ndarray,
        workload: Workload,
        *,
        macs: Sequence[float],
        seed: int = 0,
    ) -> LatencyPredictor:
        """Chooses a model by 5-fold cross-validation on four fifths, reports on the held-out fifth, fits on all.

        Args:
            space: Where the subnetworks come from.
            subnets: What was measured.
            latency_ms: How long each took, in milliseconds.
            workload: On what all of them were measured.
            macs: Multiply-accumulates of each, for the baseline of that name.
            seed: Which measurements are held out, and the folds.

        Raises:
            InputError: If there are fewer than 10 measurements, lengths differ, or a latency is not above zero.
        """
        measured, counted = np.asarray(latency_ms, dtype=float), np.asarray(macs, dtype=float)
        _check(subnets, measured, counted)
        order = np.random.default_rng(seed).permutation(len(measured))
        held_out = len(measured) // 5
        report = _report(space, subnets, measured, counted, train=order[held_out:], test=order[:held_out])
        return cls(space, subnets, measured, workload, report)

    @classmethod
    def from_measurements(
        cls, space: SearchSpace, measurements: Sequence[Measurement], *, macs: Sequence[float], seed: int = 0
    ) -> LatencyPredictor:
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

    def predict(self, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """Latencies of subnetworks: (len(subnets),) milliseconds."""
        return self._model.predict(features(self.space, subnets))

    def spread_ms(self, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """Half the width of an interval around each prediction that covers 90 % of measurements: (len(subnets),) ms.

        Split conformal prediction on relative residuals (Vovk et al., 2005; Lei et al., 2018): the coverage needs no
        assumption but that what is predicted is drawn like what was measured. With fewer than 9 held-out
        measurements the largest residual stands in, and the coverage is a little lower.
        """
        return self.predict(subnets) * self.report.residual_bound

    def save(self, folder: str | Path) -> None:
        """Writes ``predictor.json``: the measurements, the chosen model and its report; no pickled code."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        data = {
            "workload": self.workload.to_dict(),
            "space": _space_to_dict(self.space),
            "subnets": [subnet.to_dict() for subnet in self.subnets],
            "latency_ms": self.latency_ms.tolist(),
            "report": asdict(self.report),
        }
        unfinished = folder / f"{FILE}.partial"
        unfinished.write_text(json.dumps(data))
        os.replace(unfinished, folder / FILE)

    @classmethod
    def load(cls, folder: str | Path, workload: Workload | None = None) -> LatencyPredictor:
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
            found, space = Workload.from_dict(data["workload"]), _space_from_dict(data["space"])
            subnets = [SubnetConfig.from_dict(subnet) for subnet in data["subnets"]]
            report, latency_ms = PredictorReport.from_dict(data["report"]), np.array(data["latency_ms"], dtype=float)
            _check(subnets, latency_ms, latency_ms)
            predictor = cls(space, subnets, latency_ms, found, report)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"`{path}` must hold a whole saved predictor, but it does not ({error}); delete it and profile again."
            ) from error
        if workload is not None and workload != found:
            raise InputError(f"`{path}` predicts for ({found}), but got the workload ({workload}); profile again.")
        return predictor


def _check(subnets: Sequence[SubnetConfig], latency_ms: np.ndarray, macs: np.ndarray) -> None:
    if len(subnets) < MIN_MEASUREMENTS:
        raise InputError(
            f"a latency predictor needs at least {MIN_MEASUREMENTS} measurements, but got {len(subnets)}; "
            "measure more."
        )
    if not len(subnets) == len(latency_ms) == len(macs):
        raise InputError(
            f"every subnetwork needs one latency and one MAC count, but got {len(subnets)} subnetworks, "
            f"{len(latency_ms)} latencies and {len(macs)} counts."
        )
    if not (np.isfinite(latency_ms) & (latency_ms > 0)).all():
        raise InputError(f"latencies must be above zero, but got {latency_ms.min()} ms; measure again.")


def _report(
    space: SearchSpace,
    subnets: Sequence[SubnetConfig],
    latency_ms: np.ndarray,
    macs: np.ndarray,
    *,
    train: np.ndarray,
    test: np.ndarray,
) -> PredictorReport:
    """Chooses a model on ``train`` and scores every model and baseline on ``test``, both row indices."""
    x, names = features(space, subnets), feature_names(space)
    cv = {n: _cross_validated(partial(make, names), x[train], latency_ms[train]) for n, make in MODELS.items()}
    predicted = {n: make(names).fit(x[train], latency_ms[train]).predict(x[test]) for n, make in MODELS.items()}
    for name, column in BASELINES.items():
        line = column(x, macs)
        predicted[name] = LeastSquares([0]).fit(line[train], latency_ms[train]).predict(line[test])
    chosen = min(cv, key=lambda name: cv[name])
    return PredictorReport(
        model=chosen,
        n_train=len(train),
        n_test=len(test),
        cv_mape_percent=cv,
        held_out={name: errors(latency_ms[test], p) for name, p in predicted.items()},
        residual_bound=_conformal_bound(latency_ms[test], predicted[chosen]),
    )


def _cross_validated(make: Callable[[], LatencyModel], x: np.ndarray, latency_ms: np.ndarray) -> float:
    """MAPE in percent over 5 folds of rows that are already in random order."""
    fold = np.arange(len(x)) % FOLDS
    off = np.zeros(len(x))
    for k in range(FOLDS):
        model = make().fit(x[fold != k], latency_ms[fold != k])
        off[fold == k] = model.predict(x[fold == k]) / latency_ms[fold == k] - 1
    return float(np.mean(np.abs(off)) * 100)


def _conformal_bound(measured: np.ndarray, predicted: np.ndarray) -> float:
    residuals = np.sort(np.abs(measured - predicted) / predicted)
    rank = math.ceil((len(residuals) + 1) * COVERAGE)
    return float(residuals[min(rank, len(residuals)) - 1])


def _space_to_dict(space: SearchSpace) -> dict[str, Any]:
    return {**space.arguments(), "parent": space.parent.to_dict()}


def _space_from_dict(data: Mapping[str, Any]) -> SearchSpace:
    return SearchSpace(**{**data, "parent": SubnetConfig.from_dict(data["parent"])})

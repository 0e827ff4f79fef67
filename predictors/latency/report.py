"""PredictorReport: errors of a latency predictor on unseen measurements, compared with baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from predictors.latency.errors import NEAR_BOUND, NEAR_EQUAL, Errors

if TYPE_CHECKING:
    from rich.table import Table

KEYS = {"n_active": "n_chosen", "bound_ms": "around_ms", "n_near_bound": "n_near", "near_bound": "near"}
"""Attributes of `PredictorReport` with another key in predictor.json."""


@dataclass(frozen=True)
class PredictorReport:
    """Errors of a predictor on measurements that it was not fitted on.

    Attributes:
        model: The chosen models: names in `MODELS` and `PRIOR_MODELS` joined by ``+``.
        n_train: Number of measurements that models were fitted and chosen on.
        n_test: Number of held-out measurements.
        cv_mape_percent: Model -> cross-validated MAPE on the training measurements, by which the model was chosen.
        held_out: Model or baseline -> errors on the held-out measurements.
        residual_bound: Relative residual that 90 % of unseen measurements stay below, by conformal prediction.
        n_active: Number of training measurements that were selected by active learning, not sampled at random.
        bound_ms: Bound on the latency; None if there is none.
        n_near_bound: Number of measurements near the bound; without a bound, of near-equal pairs (see
            `errors_near_bound`).
        near_bound: Model or baseline -> errors of these, each predicted by models fitted without it.
    """

    model: str
    n_train: int
    n_test: int
    cv_mape_percent: Mapping[str, float]
    held_out: Mapping[str, Errors]
    residual_bound: float
    n_active: int = 0
    bound_ms: float | None = None
    n_near_bound: int = 0
    near_bound: Mapping[str, Errors] = field(default_factory=dict)

    @property
    def held_out_errors(self) -> Errors:
        """Held-out errors of the chosen model."""
        return self.held_out[self.model]

    @property
    def bound_description(self) -> str:
        """The measurements that ``near_bound`` covers, in words."""
        if self.bound_ms is None:
            return f"{self.n_near_bound} pairs within {NEAR_EQUAL:.0%} of each other"
        return f"{self.n_near_bound} measured within {NEAR_BOUND:.0%} of {self.bound_ms:g} ms"

    def table(self) -> Table:
        """Table of the errors of every model and baseline, held out and near the bound; marks the chosen model."""
        from rich.table import Table

        caption = f"near: {self.bound_description}, each predicted by models fitted without it"
        title = f"latency predictor: {self.n_test} held out of {self.n_train + self.n_test} measurements"
        table = Table(title=title, caption=caption if self.near_bound else None)
        bound_columns = ["near: MAPE %", "RMSE ms"] * (self.bound_ms is not None) + ["near: tau"]
        for column in ("model", "MAPE %", "RMSE ms", "Kendall tau", *(bound_columns if self.near_bound else ())):
            table.add_column(column, justify="left" if column == "model" else "right")
        for name, e in self.held_out.items():
            role = "chosen" if name == self.model else "" if name in self.cv_mape_percent else "baseline"
            near = _cells(self.near_bound[name])[-len(bound_columns) :] if self.near_bound else ()
            table.add_row(f"{name} ({role})" if role else name, *_cells(e), *near)
        return table

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PredictorReport:
        """Reads what `to_dict` returns."""
        names = {key: name for name, key in KEYS.items()}
        values = {names.get(key, key): value for key, value in data.items()}
        for name in ("held_out", "near_bound"):
            values[name] = {model: Errors(**errors) for model, errors in values.get(name, {}).items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold, under the keys of predictor.json."""
        return {KEYS.get(name, name): value for name, value in asdict(self).items()}


def _cells(e: Errors) -> tuple[str, str, str]:
    return f"{e.mape_percent:.1f}", f"{e.rmse_ms:.3g}", f"{e.kendall_tau:.3f}"

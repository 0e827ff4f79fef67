"""PredictorReport: how good a latency predictor is, beside simpler ones, and near what a search asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from predictors.latency.errors import BAND, NEAR_EQUAL, Errors

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class PredictorReport:
    """How good a predictor is on measurements it has not seen.

    Attributes:
        model: The chosen models, names in `MODELS` and `PRIOR_MODELS` joined by ``+``.
        n_train: Measurements that models were fitted and chosen on.
        n_test: Measurements held out.
        cv_mape_percent: Model -> cross-validated error on the former, by which the model was chosen.
        held_out: Model or baseline -> errors on the latter.
        residual_bound: The relative residual that 90 % of measurements stay below when they are left out, with the
            correction of conformal prediction.
        n_chosen: Of the former, those that were chosen where a predictor was least sure, not drawn at random.
        around_ms: The bound on the latency that ``near`` is about; without one, ``near`` is about near-equal pairs.
        n_near: Measurements near the bound, or near-equal pairs (see `errors_near`).
        near: Model or baseline -> errors there, of all measurements, each predicted by models fitted without it.
    """

    model: str
    n_train: int
    n_test: int
    cv_mape_percent: Mapping[str, float]
    held_out: Mapping[str, Errors]
    residual_bound: float
    n_chosen: int = 0
    around_ms: float | None = None
    n_near: int = 0
    near: Mapping[str, Errors] = field(default_factory=dict)

    @property
    def chosen(self) -> Errors:
        """Held-out errors of the predictor itself."""
        return self.held_out[self.model]

    @property
    def whereabouts(self) -> str:
        """What ``near`` is about, in words."""
        if self.around_ms is None:
            return f"{self.n_near} pairs within {NEAR_EQUAL:.0%} of each other"
        return f"{self.n_near} measured within {BAND:.0%} of {self.around_ms:g} ms"

    def table(self) -> Table:
        """Errors of every model and baseline, the chosen one marked: of what was held out, and near the bound."""
        from rich.table import Table

        caption = f"near: {self.whereabouts}, each predicted by models fitted without it"
        title = f"latency predictor: {self.n_test} held out of {self.n_train + self.n_test} measurements"
        table = Table(title=title, caption=caption if self.near else None)
        banded = ["near: MAPE %", "RMSE ms"] * (self.around_ms is not None) + ["near: tau"]
        for column in ("model", "MAPE %", "RMSE ms", "Kendall tau", *(banded if self.near else ())):
            table.add_column(column, justify="left" if column == "model" else "right")
        for name, e in self.held_out.items():
            kind = "chosen" if name == self.model else "" if name in self.cv_mape_percent else "baseline"
            near = _shown(self.near[name])[-len(banded) :] if self.near else ()
            table.add_row(f"{name} ({kind})" if kind else name, *_shown(e), *near)
        return table

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PredictorReport:
        """Reads back ``dataclasses.asdict``."""
        scores = {of: {n: Errors(**e) for n, e in data.get(of, {}).items()} for of in ("held_out", "near")}
        return cls(**{**data, **scores})


def _shown(e: Errors) -> tuple[str, str, str]:
    return f"{e.mape_percent:.1f}", f"{e.rmse_ms:.3g}", f"{e.kendall_tau:.3f}"

"""Metrics of a run's exports after `nas finetune`, shown with those inherited from the supernet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.fronts.point import Point, require_numbers
from nas.recipe.objectives import FINETUNED_SUFFIX, format_value
from nas.runs.files import read_json, write_json

if TYPE_CHECKING:
    from nas.fronts.front import ParetoFront
    from nas.runs.run import Run


@dataclass(frozen=True)
class Finetuned:
    """One export of a run after fine-tuning.

    Attributes:
        key: Key of its subnetwork.
        folder: The fine-tuned model.
        values: Metric -> value on the run's held-out split.
        errors: Metric -> standard error.
    """

    key: str
    folder: str
    values: dict[str, float]
    errors: dict[str, float]

    def __str__(self) -> str:
        metrics = ", ".join(
            f"{name} {format_value(name, v, self.errors.get(name))}" for name, v in self.values.items()
        )
        return f"{self.folder}: {self.key}, {metrics}"


def load_finetuned(run: Run) -> dict[str, Finetuned]:
    """The fine-tuned exports of a run by key, the last one of each subnetwork."""
    if not run.finetuned.is_file():
        return {}
    return dict(read_json(run.finetuned, parse=_parse))


def _parse(data: Any) -> dict[str, Finetuned]:
    exports = {key: Finetuned(**fields) for key, fields in data.items()}
    for export in exports.values():
        if not (isinstance(export.folder, str) and isinstance(export.key, str)):
            raise TypeError("`folder` and `key` must be texts")
        require_numbers("values", export.values)
        require_numbers("errors", export.errors)
    return exports


def save_finetuned(run: Run, export: Finetuned) -> None:
    """Adds a fine-tuned export to its run."""
    exports = {**load_finetuned(run), export.key: replace(export, folder=str(Path(export.folder).resolve()))}
    write_json(run.finetuned, {key: asdict(each) for key, each in exports.items()})


def front_with_finetuned(run: Run) -> ParetoFront:
    """The front of a run, with the metrics after fine-tuning where known."""
    front = run.front()
    return replace(front, points=tuple(with_finetuned(front, load_finetuned(run))))


def with_finetuned(points: Iterable[Point], exports: dict[str, Finetuned]) -> list[Point]:
    """The points, with each metric after fine-tuning behind the inherited one."""
    return [_with_finetuned_values(point, exports[point.key]) if point.key in exports else point for point in points]


def _with_finetuned_values(point: Point, export: Finetuned) -> Point:
    values: dict[str, float] = {}
    for name, value in point.values.items():
        values[name] = value
        if name in export.values:
            values[name + FINETUNED_SUFFIX] = export.values[name]
    errors = {name + FINETUNED_SUFFIX: error for name, error in export.errors.items() if name in point.values}
    return replace(point, values=values, errors={**point.errors, **errors})

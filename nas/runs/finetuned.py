"""Fine-tuned: what exports of a run reach after `nas finetune`, beside what they inherited from the supernet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nas.fronts.point import Point
from nas.recipe.objectives import FINETUNED_SUFFIX, format_value
from nas.runs.files import read_json, write_json

if TYPE_CHECKING:
    from nas.fronts.front import ParetoFront
    from nas.runs.run import Run


@dataclass(frozen=True)
class Finetuned:
    """One export of a run after fine-tuning.

    Attributes:
        key: Of its subnetwork.
        folder: Where it is.
        values: Quality -> value on the run's held-out split.
        errors: Quality -> its standard error.
    """

    key: str
    folder: str
    values: dict[str, float]
    errors: dict[str, float]

    def __str__(self) -> str:
        figures = ", ".join(
            f"{name} {format_value(name, v, self.errors.get(name))}" for name, v in self.values.items()
        )
        return f"{self.folder}: {self.key}, {figures}"


def load_finetuned(run: Run) -> dict[str, Finetuned]:
    """What has been fine-tuned of a run, by key; of one subnetwork the last one."""
    if not run.finetuned.is_file():
        return {}
    return {key: Finetuned(**found) for key, found in read_json(run.finetuned).items()}


def save_finetuned(run: Run, found: Finetuned) -> None:
    """Keeps what an export reaches."""
    known = {**load_finetuned(run), found.key: replace(found, folder=str(Path(found.folder).resolve()))}
    write_json(run.finetuned, {key: asdict(each) for key, each in known.items()})


def front_with_finetuned(run: Run) -> ParetoFront:
    """The front of a run with the qualities of what has been fine-tuned of it."""
    front = run.front()
    return replace(front, points=tuple(with_finetuned(front, load_finetuned(run))))


def with_finetuned(points: Iterable[Point], known: dict[str, Finetuned]) -> list[Point]:
    """The same points, each fine-tuned quality behind the inherited one."""
    return [_with_finetuned_values(point, known[point.key]) if point.key in known else point for point in points]


def _with_finetuned_values(point: Point, found: Finetuned) -> Point:
    values: dict[str, float] = {}
    for name, value in point.values.items():
        values |= {name: value, **({name + FINETUNED_SUFFIX: found.values[name]} if name in found.values else {})}
    errors = {name + FINETUNED_SUFFIX: error for name, error in found.errors.items() if name in point.values}
    return replace(point, values=values, errors={**point.errors, **errors})

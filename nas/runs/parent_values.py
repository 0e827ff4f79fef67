"""The values of a run's parent as the search sees them, which bounds in its terms refer to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nas.fronts.point import require_numbers
from nas.runs.files import read_json, write_json

if TYPE_CHECKING:
    from nas.runs.run import Run


def read_parent_values(run: Run) -> dict[str, float]:
    """Metric or cost -> value: metrics on the search split, the latency as predicted; none before they are needed."""
    return dict(read_json(run.parent_values, parse=_parse)) if run.parent_values.exists() else {}


def write_parent_values(run: Run, values: Mapping[str, float]) -> None:
    """Stores the values of the parent."""
    write_json(run.parent_values, dict(values))


def _parse(data: Any) -> dict[str, float]:
    require_numbers("values", data)
    return dict(data)

"""The export stage: the knee of the front as a model folder."""

from __future__ import annotations

from nas.exports.export import export_subnet
from nas.runs.run import Run


def run_export(run: Run) -> None:
    """Exports the knee of the front, where it is not there yet."""
    knee = run.front().knee()
    if not (run.exports / knee.key).exists():
        export_subnet(run, knee, run.exports / knee.key)

"""The export stage: the knee of the front as a model folder."""

from __future__ import annotations

from nas.exports.export import export_subnet
from nas.runs.run import Run
from nas.tasks.context import TaskContext


def run_export(run: Run, context: TaskContext, cluster: str | None = None) -> None:
    """Exports the knee of the front into ``run.exports``.

    Args:
        run: The run, with its front.
        context: Its recipe says whether code of the parent may run.
        cluster: Not used; this stage runs in this process.

    Raises:
        InputError: If the export does not reload with equal outputs.
    """
    knee = run.front().knee()
    export_subnet(run, knee, run.exports / knee.key, trust=context.recipe.trust_remote_code)

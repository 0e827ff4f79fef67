"""The whole road: recipe -> parent -> supernet -> profile -> search -> verify -> report -> export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from nas.recipe.schema import Recipe
from nas.reports.summary import near_bound_line, predictor_line
from nas.runs import processes
from nas.runs.progress import print_line, quiet_libraries
from nas.runs.run import Run
from nas.stages.check import open_run
from nas.stages.export import run_export
from nas.stages.parent import run_parent
from nas.stages.profile import run_profile
from nas.stages.report import run_report
from nas.stages.search import run_search
from nas.stages.supernet import run_supernet
from nas.stages.verify import run_verify
from nas.tasks.context import TaskContext
from predictors import SubnetPredictor


def search(recipe: Recipe, folder: str | Path, *, cluster: str | None = None) -> Run:
    """Runs every stage of a recipe that its folder does not hold yet.

    Args:
        recipe: What to do.
        folder: The run. Calling again with the same recipe resumes; a finished run is only shown.
        cluster: Address of a Ray cluster whose workers share the evaluations of the search, or ``auto``, and train
            where the recipe asks for several; everything else, the measuring of latencies above all, stays here.

    Returns:
        The finished run, its knee exported.

    Raises:
        InputError: If the recipe does not fit the model, the data, this device or the folder; nothing is changed.
    """
    quiet_libraries()
    with prepare_run(recipe, folder, cluster) as (context, run):
        predictor = run_profile(run, context)
        print_line(f"predictor  {predictor_line(predictor)}")
        print_line(f"near       {near_bound_line(predictor)}")
        if not run.front_file.exists():
            run_search(run, context, predictor, cluster)
            run_verify(run, context, predictor)
        report_and_export(run, predictor)
    return run


def report_and_export(run: Run, predictor: SubnetPredictor) -> None:
    """The report and the knee's export, where they are not there yet."""
    if not run.report.exists():
        run_report(run, predictor)
    run_export(run)


def profile(recipe: Recipe, folder: str | Path) -> SubnetPredictor:
    """Runs the stages up to this device's latency predictor."""
    quiet_libraries()
    with prepare_run(recipe, folder) as (context, run):
        return run_profile(run, context)


@contextmanager
def prepare_run(recipe: Recipe, folder: str | Path, cluster: str | None = None) -> Iterator[tuple[TaskContext, Run]]:
    """The open run of a recipe with its parent and supernet; of several processes, the main one goes on with it."""
    if not processes.is_main():
        processes.barrier()  # until the run is there and held
    context, run = open_run(recipe, folder)
    with run.locked() if processes.is_main() else nullcontext():
        if processes.is_main():
            processes.barrier()
        run_parent(run, context, cluster)
        run_supernet(run, context, cluster)
        processes.exit_other_processes()
        yield context, run

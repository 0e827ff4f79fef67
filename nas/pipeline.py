"""The pipeline: the stages of a run in order, and the functions that run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas.recipe.schema import Recipe
    from nas.runs.run import Run
    from nas.tasks.context import TaskContext
    from predictors import SubnetPredictor


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: Its name, also in the recipe, in messages and in `nas watch`.
        meaning: What it does, in one sentence.
        is_done: Whether a run has its result. A stage writes its result last and is skipped when it exists.
        function: ``module:function`` that runs it, given a `Run`, a `TaskContext` and the address of a Ray cluster or
            None. It is imported when it is called, so that listing the stages imports no torch.
        in_all_processes: Whether data-parallel processes run it together; the other stages run in the main process.
    """

    name: str
    meaning: str
    is_done: Callable[[Run], bool]
    function: str
    in_all_processes: bool = False

    def run(self, run: Run, context: TaskContext, cluster: str | None = None) -> None:
        """Runs the stage.

        Raises:
            InputError: If the recipe does not fit what the stage finds; the run stays resumable.
        """
        resolve_name(self.function)(run, context, cluster)


STAGES = (
    Stage(
        "parent",
        "Fine-tune the model on the task, if it has no trained head.",
        lambda run: run.parent.exists(),
        "nas.stages.parent:run_parent",
        in_all_processes=True,
    ),
    Stage(
        "supernet",
        "Order the weights by importance and train all subnetworks together.",
        lambda run: run.supernet.exists(),
        "nas.stages.supernet:run_supernet",
        in_all_processes=True,
    ),
    Stage(
        "profile",
        "Measure sampled subnetworks and fit the latency predictor.",
        lambda run: all(target.is_profiled for target in run.targets),
        "nas.stages.profile:run_profile",
    ),
    Stage(
        "search",
        "Evaluate subnetworks: the search, and its baselines (uniform scaling, random search).",
        lambda run: run.front_file.exists(),  # a search resumes until it is verified; trials.csv also follows an error
        "nas.stages.search:run_search",
    ),
    Stage(
        "finish",
        "Train the chosen subnetworks of the front on, with the parent as the teacher.",
        lambda run: run.finished_list.exists() or run.front_file.exists(),
        "nas.stages.finish:run_finish",
    ),
    Stage(
        "verify",
        "Export, measure and score the fronts of the search and its baselines on the held-out split.",
        lambda run: run.front_file.exists() and not run.n_unverified,
        "nas.stages.verify:run_verify",
    ),
    Stage(
        "report",
        "Write report.html.",
        lambda run: run.report.exists(),
        "nas.stages.report:run_report",
    ),
    Stage(
        "export",
        "Export the knee of the front as a model folder.",
        lambda run: run.front_file.exists() and (run.exports / run.front().knee().key).exists(),
        "nas.stages.export:run_export",
    ),
)
"""The stages of a run, in order."""


def search(recipe: Recipe, folder: str | Path, *, cluster: str | None = None) -> Run:
    """Runs every stage of a recipe that has no result in the folder yet.

    Args:
        recipe: What to do.
        folder: The run. Calling again with the same recipe resumes.
        cluster: Address of a Ray cluster, or ``auto``. Its workers evaluate subnetworks, and train if the recipe asks
            for several workers. Latencies are measured in this process.

    Returns:
        The finished run, its knee exported.

    Raises:
        InputError: If the recipe does not fit the model, the data, this device or the folder; nothing is changed.
    """
    from nas.runs.progress import quiet_libraries

    quiet_libraries()
    with locked_run(recipe, folder, cluster) as (context, run):
        run_stages(run, context, cluster)
    return run


def profile(recipe: Recipe, folder: str | Path) -> SubnetPredictor:
    """Runs the stages up to the latency predictors of this device, and returns that of the first workload.

    Those of other workloads: ``target.load_predictor()`` for each of the ``targets`` of the `Run`.

    Raises:
        InputError: If the recipe does not fit the model, the data, this device or the folder; nothing is changed.
    """
    from nas.runs.progress import quiet_libraries

    quiet_libraries()
    with locked_run(recipe, folder) as (context, run):
        run_stages(run, context, last="profile")
        return run.target.load_predictor()


def run_stages(run: Run, context: TaskContext, cluster: str | None = None, *, last: str = "export") -> None:
    """Runs the stages that have no result yet, up to and including ``last``.

    Args:
        run: The run, locked.
        context: The context of its recipe.
        cluster: Address of a Ray cluster; None for none.
        last: Name of a stage.
    """
    from nas.runs import processes
    from nas.runs.progress import waiting

    names = [stage.name for stage in STAGES]
    for stage in STAGES[: names.index(last) + 1]:
        if not stage.in_all_processes:
            processes.exit_other_processes()
        is_done = stage.is_done(run)
        processes.barrier()  # every process must look before one of them writes the result
        if not is_done:
            with waiting(stage.name):
                stage.run(run, context, cluster)


@contextmanager
def locked_run(recipe: Recipe, folder: str | Path, cluster: str | None = None) -> Iterator[tuple[TaskContext, Run]]:
    """The run of a recipe, locked by the main process; the other processes wait until it exists."""
    from nas.runs import processes
    from nas.runs.progress import waiting

    if not processes.is_main():
        processes.barrier()
    with waiting("check"):
        from nas.stages.check import open_run
        from nas.supernets.device import set_threads

        context, run = open_run(recipe, folder, cluster=cluster)
    with run.locked() if processes.is_main() else nullcontext():
        if processes.is_main():
            processes.barrier()
        if processes.world_size() == 1:
            set_threads(run)
        yield context, run

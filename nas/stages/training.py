"""What the trained stages share: running a training in the launched processes or on Ray, and saving its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nas.recipe.schema import Finish, SupernetTraining
from nas.runs import processes
from nas.runs.files import write_json
from nas.runs.progress import ProgressCallback, progress
from nas.runs.run import Run
from nas.stages.resources import check_processes
from nas.tasks.context import TaskContext
from nas.tasks.kept_outputs import KeptOutputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TrainFunction = Callable[[Run, TaskContext, ProgressCallback], None]
"""A training of a run, called in each of its processes."""


def run_training(train: TrainFunction, name: str, run: Run, context: TaskContext, cluster: str | None) -> None:
    """Runs a training in the launched processes, or on the workers of a Ray cluster.

    Args:
        train: A module-level function, so that workers can import it.
        name: Section of the recipe with its settings.
        run: The run.
        context: The context of its recipe.
        cluster: Address of a Ray cluster; None for none.

    Raises:
        InputError: If the recipe asks for another number of processes than was launched, and there is no cluster.
    """
    check_processes(context.recipe, cluster, [name])
    launched, settings = processes.world_size(), getattr(context.recipe, name)
    with progress(name) as report:
        if settings.workers in (None, launched):
            train(run, context, report)
        else:
            from nas.ray.training import train_on_ray

            assert cluster is not None
            train_on_ray(cluster, train, name, run, settings, report)


def save_trained(model: PreTrainedModel, log: list[dict[str, float]], work: Path) -> None:
    """Saves a trained model and the log of its training, in the main process."""
    if processes.is_main():
        model.save_pretrained(work)
        write_json(work / "training.json", log)


def shared_outputs(run: Run, context: TaskContext, settings: SupernetTraining | Finish) -> KeptOutputs | None:
    """What keeps the parent's outputs for all trainings of a run on the same examples; None for augmented ones.

    The likeliest classes are those at one temperature.
    """
    if settings.augment is not None:
        return None
    of_temperature = f"at-{settings.temperature:g}" if context.splits.task.reads_blocks else ""
    return KeptOutputs(run.teacher_outputs / of_temperature, len(context.training_set(settings)))

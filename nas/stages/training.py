"""Runs the training of a stage, in the processes there are or on a Ray cluster, and stores its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nas.runs import processes
from nas.runs.files import write_json
from nas.runs.progress import ProgressCallback, progress
from nas.runs.run import Run
from nas.tasks.context import TaskContext
from search_spaces import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TrainFunction = Callable[[Run, TaskContext, ProgressCallback], None]
"""A training of a run, called in each of its processes."""


def run_training(train: TrainFunction, name: str, run: Run, context: TaskContext, cluster: str | None) -> None:
    """Runs a training in the processes there are, or on the workers of a Ray cluster.

    Args:
        train: A function of a module, so that workers can import it.
        name: Section of the recipe that describes it.
        run: Keeps what it needs and ends with.
        context: Of its recipe.
        cluster: Address of the Ray cluster; None: there is none.

    Raises:
        InputError: If the recipe asks for other processes than there are, and there is no cluster.
    """
    here, settings = processes.world_size(), getattr(context.recipe, name)
    with progress(name) as report:
        if settings.workers in (None, here):
            train(run, context, report)
        elif cluster is not None and here == 1:
            from nas.ray.training import train_on_ray

            train_on_ray(cluster, train, name, run, settings, report)
        else:
            raise InputError(
                f"`{name}.workers` is {settings.workers}, but there {'is 1 process' if here == 1 else f'are {here}'}; "
                f"add --ray, or start as many with `torchrun --nproc-per-node {settings.workers} -m -- nas.cli ...`."
            )


def save_trained(model: PreTrainedModel, log: list[dict[str, float]], work: Path) -> None:
    """Writes what a training ended with, from the main process."""
    if processes.is_main():
        model.save_pretrained(work)
        write_json(work / "training.json", log)

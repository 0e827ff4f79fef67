"""The parent stage: the recipe's model, fine-tuned on the task if it has no trained head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nas.modeling.cast import cast_weights
from nas.runs import processes
from nas.runs.files import link, partial_path, write_json
from nas.runs.processes import build_in_main
from nas.runs.progress import ProgressCallback, print_line
from nas.runs.run import Run
from nas.stages.training import run_training, save_trained
from nas.supernets.training import model_trainer, train
from nas.tasks.context import TaskContext
from nas.tasks.weights import files_of_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run_parent(run: Run, context: TaskContext, cluster: str | None = None) -> None:
    """Stores the parent in ``run.parent``: the recipe's model, fine-tuned on the task if it has no trained head.

    Args:
        run: The run.
        context: The context of its recipe.
        cluster: Address of a Ray cluster, which trains if the recipe sets ``parent.workers``.

    Raises:
        InputError: If the recipe asks for more processes than there are, and there is no cluster.
    """
    with build_in_main(run, run.parent) as work:
        if context.should_finetune:
            run_training(train_parent, "parent", run, context, cluster)
        elif processes.is_main():
            save_as_it_came(cast_weights(context.load_model(), context.dtype), context.recipe.model, work)
        if processes.is_main():
            context.save_processor(work)
    print_line(f"parent     {'fine-tuned' if context.should_finetune else 'used without fine-tuning'}: {run.parent}")


def train_parent(run: Run, context: TaskContext, report: ProgressCallback) -> None:
    """Fine-tunes the recipe's model and saves it in the work folder of the stage."""
    work, settings, task = partial_path(run.parent), context.recipe.parent, context.splits.task
    with context.training():
        model = context.load_model()
    examples = context.training_set(settings)
    trainer = model_trainer(model, settings, work / "checkpoints", examples, task, context.recipe.seed)
    log = train(trainer, report, run.logs / "parent", settings.minutes)
    save_trained(cast_weights(model, context.dtype), log, work)


def save_as_it_came(model: PreTrainedModel, source: str, work: Path) -> None:
    """Saves a model that is not trained: files that hold just its weights are linked, where that is possible.

    Args:
        model: With the dtype of its files.
        source: The folder or hub id that it was loaded from.
        work: The folder to write.
    """
    files = files_of_weights(model, source)
    if not files:
        return save_trained(model, [], work)
    model.save_pretrained(work, state_dict={})
    for file in files:
        link(file, work / file.name)
    write_json(work / "training.json", [])

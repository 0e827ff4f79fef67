"""The parent stage: the recipe's model, fine-tuned on the task if it has no trained head yet."""

from __future__ import annotations

from nas.runs import processes
from nas.runs.files import partial_of
from nas.runs.processes import build_in_main, exists_for_all
from nas.runs.progress import Report, say
from nas.runs.run import Run
from nas.stages.training import run_training, store_model
from nas.supernets.training import plain_trainer, train
from nas.tasks.context import Workbench


def make_parent(run: Run, bench: Workbench, cluster: str | None = None) -> None:
    """Stores the parent: the recipe's model if it already does the task, else fine-tuned on it.

    Args:
        run: Keeps it.
        bench: Of its recipe.
        cluster: Address of the Ray cluster that trains where ``parent.workers`` are asked for.
    """
    if exists_for_all(run.parent):
        return
    with build_in_main(run, run.parent) as work:
        if bench.trains_parent:
            run_training(train_parent, "parent", run, bench, cluster)
        elif processes.is_main():
            store_model(bench.load_model(), [], work)
        if processes.is_main():
            bench.processor.save_pretrained(work)
    say(f"parent     {'fine-tuned' if bench.trains_parent else 'as it came'}: {run.parent}")


def train_parent(run: Run, bench: Workbench, report: Report) -> None:
    """Fine-tunes the recipe's model, and stores it where the parent is built."""
    work, settings, task = partial_of(run.parent), bench.recipe.parent, bench.splits.task
    model, examples = bench.load_model(), bench.training_set(settings)
    trainer = plain_trainer(model, settings, work / "checkpoints", examples, task, bench.recipe.seed)
    store_model(model, train(trainer, report, run.logs / "parent"), work)

"""Finishes architectures of a run one by one, as the finish stage does, for so many CPU seconds each.

The parent's outputs and hidden states on the training data are computed first, once for all, and are not counted.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas.recipe.schema import Finish
from nas.runs.run import Run
from nas.supernets.distillation_trainer import DistillationTrainer
from nas.supernets.hidden_states import StateMatching
from nas.supernets.load import load_ordered_parent
from nas.supernets.training import model_trainer
from nas.tasks.context import TaskContext
from nas.tasks.kept_outputs import KeptOutputs, KeptStates
from search_spaces import SubnetConfig

ROWS = 64
WEIGHT = 10.0


class Finisher:
    """Trains subnetworks of a run with its parent as the teacher.

    Args:
        run: A run whose supernet exists.
        context: Of its recipe.
        subnets: All that will be trained: the teacher's states are kept for their layers.
        folder: For checkpoints and outputs, deleted by the caller.
    """

    def __init__(self, run: Run, context: TaskContext, subnets: Sequence[SubnetConfig], folder: Path) -> None:
        self.context, self.folder = context, folder
        self.parent = load_ordered_parent(run, context)[0]
        self._examples = context.training_set(context.recipe.finish)
        self._kept = KeptOutputs(folder / "outputs", len(self._examples))
        self._matching = StateMatching(WEIGHT, self.parent.layout, subnets, KeptStates())

    def settings(self, **values: Any) -> Finish:
        """The recipe's settings of the finish with other values; by default with hidden states."""
        return self.context.recipe.finish.model_copy(update={"hidden_states": WEIGHT, **values})

    def train(
        self, model: Any, subnet: SubnetConfig, settings: Finish, *, seconds: float = 0.0, steps: int | None = None
    ) -> int:
        """Trains an extracted model; returns its steps: as given, or as many as take about so many CPU seconds.

        The time of the steps that are timed first counts.
        """
        trainer = model_trainer(
            model.requires_grad_(True),
            settings,
            self.folder / "work",
            self._examples,
            self.context.splits.task,
            self.context.recipe.seed,
            teacher=self.parent.model,
            temperature=settings.temperature,
            kept=self._kept,
            states=replace(self._matching, weight=settings.hidden_states) if settings.hidden_states else None,
            layers=subnet.layers,
        )
        self._compute_teacher(trainer)
        trainer.args.save_strategy = "no"
        trainer.args.max_steps = steps or trainer.steps_within(seconds, time.process_time)
        trainer.train()
        model.eval()
        return int(trainer.args.max_steps)

    def _compute_teacher(self, trainer: DistillationTrainer) -> None:
        """Computes the teacher's outputs and states on the examples of which they are not kept."""
        for first in range(self._kept.n_known, len(self._examples), ROWS):
            rows = range(first, min(first + ROWS, len(self._examples)))
            batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])
            trainer.teacher_outputs(*trainer.pop_row_index(batch))


@contextmanager
def finisher(run: Run, context: TaskContext, subnets: Sequence[SubnetConfig]) -> Iterator[Finisher]:
    """A `Finisher` in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield Finisher(run, context, subnets, Path(folder))

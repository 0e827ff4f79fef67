"""Questions of a task of lm-eval, beside the texts of a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.tasks.batches import Batch, Row
from nas.tasks.harness import HarnessTask
from nas.tasks.metrics import Metric, object_array
from nas.tasks.types.base import TaskInputs, TextTask

if TYPE_CHECKING:
    from datasets import Dataset

    from nas.tasks.losses import LogitsAndLabels

NUMBER, SEARCHED = "number", "searched"
"""Columns with the number of a question among those of its part, and whether it is one of those for the search."""

PARTS = 2
"""Questions for the search are drawn for so many sets: the search slice, and that on which near ties are scored."""


class HarnessQuestions(TextTask):
    """An example is a question of a task of lm-eval. Its metrics are the task's, computed by lm-eval.

    ``train`` holds the questions for the search, in random order, ``test`` those that lm-eval scores on.
    """

    has_vocabulary_logits = True
    reference_columns = (NUMBER, SEARCHED)

    def __init__(self, inputs: TaskInputs, source: str, named: Mapping[str, str]) -> None:
        """Reads the task.

        Args:
            inputs: The parts of the recipe.
            source: Name of the task, or its YAML file.
            named: Name of a metric in the recipe -> that of the task, empty for its first one.
        """
        held_out = HarnessTask(source, inputs.settings.lm_eval_limit)
        searched = HarnessTask(source, PARTS * inputs.settings.search_examples, inputs.seed)
        self.parts = {False: held_out, True: searched}
        self.named = {name: held_out.metric(metric) for name, metric in named.items()}
        super().__init__(inputs, self._rows(True).shuffle(seed=inputs.seed), self._rows(False))

    def _rows(self, searched: bool) -> Dataset:
        from datasets import Dataset

        count = len(self.parts[searched].numbers)
        return Dataset.from_dict({NUMBER: range(count), SEARCHED: [searched] * count})

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Name in the recipe -> the aggregation of lm-eval over questions."""
        aggregate = self.parts[False].task.aggregation()
        return {name: _aggregated(metric, aggregate[metric]) for name, metric in self.named.items()}

    @property
    def passes(self) -> int:
        """Passes of a model that a question takes, as many as the first one: a choice is one, and so is a text."""
        return self.parts[False].requests_each

    def metric(self, name: str) -> Metric:
        """Returns a metric by its name in the recipe."""
        return self.metrics[name]

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Returns the numbers of the questions: lm-eval writes their prompts."""
        return examples

    def collate(self, rows: list[Row]) -> Batch:
        """Returns no inputs: lm-eval makes its own from the numbers of the questions."""
        return {}

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Raises: questions are scored, not trained on."""
        raise NotImplementedError

    def example_stats(
        self, model: Any, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns the value of each metric for each question."""
        part = self.parts[rows[0][0][SEARCHED]]
        answers = part.answers(model, self.processor, [row[NUMBER] for (row,) in rows], self.evaluation_batch_size)
        wanted = {self.named[name] for name in metric_names}
        return {metric: object_array([answer[metric] for answer in answers]) for metric in sorted(wanted)}


def _aggregated(name: str, aggregate: Any) -> Metric:
    return lambda stats: float(aggregate(list(stats[name])))

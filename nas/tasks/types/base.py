"""TaskType: what one kind of task makes of a recipe's data, of a model's outputs and of its qualities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nas.tasks.batches import IGNORE_INDEX, Batch, Row
from nas.tasks.metrics import Metric, load_metric
from search_spaces import InputError
from search_spaces.errors import did_you_mean

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedModel

    from nas.recipe.schema import TaskSettings
    from nas.tasks.losses import Activation, LogitsAndLabels
    from predictors import Workload

EVALUATION_BATCH_SIZE = 64
MAX_BATCH_LOGITS = 2**26
"""Scores of words that one evaluation batch may have: 256 MB."""


@dataclass(frozen=True)
class TaskInputs:
    """What a task type needs of a recipe and its model.

    Attributes:
        settings: The section ``task`` of the recipe.
        config: The model's Hugging Face config.
        processor: Its tokenizer, image processor or feature extractor.
        model: The recipe's model, as errors name it.
        seed: The recipe's seed.
        head_names: Class names of a trained head by output; None without one.
    """

    settings: TaskSettings
    config: PreTrainedConfig
    processor: Any
    model: str
    seed: int
    head_names: list[str] | None


class TaskType(ABC):
    """A recipe's task with its data: made once the training and test data are loaded.

    Attributes:
        train: Training examples, not yet model inputs; the search slice is drawn from them.
        test: Held-out examples.
        names: Class names by id; empty where there are no classes.
        problem_type: What the model's config must say, if anything.
        activation: What makes a prediction of the logits.
        compared: Columns of a row that `found` reads beside the batch, such as the text of an answer.
    """

    processor_class: ClassVar[str] = "AutoTokenizer"
    processor_kwargs: ClassVar[Mapping[str, Any]] = {}
    folder_builder: ClassVar[str] = "imagefolder"
    has_vocabulary_logits: ClassVar[bool] = False
    reference_columns: ClassVar[tuple[str, ...]] = ()
    names: list[str]
    problem_type: str | None = None
    activation: Activation = "softmax"

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        """Checks the data and prepares its examples.

        Raises:
            InputError: If the data does not hold what the task needs.
        """
        self.task = inputs.settings
        self.config = inputs.config
        self.processor = inputs.processor
        self.names = []
        self.train, self.test = train, test

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, Metric]:
        """The qualities it has by name, of what `found` finds."""

    @abstractmethod
    def process(self, examples: Dataset, source: str) -> Dataset:
        """Examples -> rows of model inputs with labels; ``source`` names the data in errors."""

    @abstractmethod
    def collate(self, rows: list[Row]) -> Batch:
        """Rows -> a batch: what a model is called with."""

    @abstractmethod
    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """The logits that the task is about, each with its labels."""

    @abstractmethod
    def example_stats(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """What the metrics need to know of each example of a batch, small enough to keep.

        Args:
            model: In evaluation mode, on the device of the batch.
            batch: Collated rows.
            rows: The rows of each example, their ``reference_columns``.
            metric_names: Names of the qualities that are asked for.

        Returns:
            Name -> array (examples, ...).
        """

    def __getstate__(self) -> dict[str, Any]:
        """What scores elsewhere has no need of the data."""
        return {name: value for name, value in self.__dict__.items() if name not in ("train", "test")}

    def configure(self, config: PreTrainedConfig) -> None:
        """Tells the config of a model that is to be trained what the task needs of it."""
        if self.problem_type is not None:
            config.problem_type = self.problem_type

    def evaluation_collator(self) -> Callable[[list[Row]], Batch]:
        """How an evaluation set is collated: the same on every call."""
        return self.collate

    def group_by_example(self, rows: Iterable[Row]) -> list[list[Row]]:
        """Rows grouped by the example they are of."""
        return [[row] for row in rows]

    @property
    def evaluation_batch_size(self) -> int:
        """Examples of one batch when a model is scored; of words, as many as all their scores leave room for."""
        if not self.has_vocabulary_logits:
            return EVALUATION_BATCH_SIZE
        max_examples = MAX_BATCH_LOGITS // (self.task.max_length * self.config.vocab_size)
        return max(1, min(EVALUATION_BATCH_SIZE, max_examples))

    def metric(self, name: str) -> Metric:
        """A quality by name, one of ours or of the recipe's ``task.metrics``.

        Raises:
            InputError: If the task has none of that name.
        """
        if name in self.task.metrics:
            return load_metric(self.task.metrics[name])
        if name not in self.metrics:
            task_name = self.problem_type or self.task.type
            raise InputError(
                f"`objectives` and `constraints` must name qualities of this task ({task_name}), but got `{name}`; "
                f"{did_you_mean(name, [*self.metrics, *self.task.metrics])}; `task.metrics` adds others."
            )
        return self.metrics[name]

    @classmethod
    @abstractmethod
    def dummy_inputs(
        cls, config: PreTrainedConfig, workload: Workload, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Random inputs of a workload's shape; every token is real, none is padding."""


def random_tokens(config: PreTrainedConfig, workload: Workload, generator: torch.Generator) -> torch.Tensor:
    """Token ids (batch, sequence)."""
    import torch

    assert workload.sequence_length is not None
    shape = (workload.batch_size, workload.sequence_length)
    return torch.randint(0, config.vocab_size, shape, generator=generator)


def pad_labels(rows: list[Row], length: int, side: str = "right") -> torch.Tensor:
    """Label lists of different lengths as one tensor (rows, length), filled up with `IGNORE_INDEX`."""
    import torch

    padded = torch.full((len(rows), length), IGNORE_INDEX)
    for padded_row, row in zip(padded, rows, strict=True):
        labels = torch.tensor(row["labels"])
        padded_row[slice(len(labels)) if side == "right" else slice(length - len(labels), length)] = labels
    return padded


class TextTask(TaskType):
    """A task on texts that a tokenizer reads."""

    @classmethod
    def dummy_inputs(
        cls, config: PreTrainedConfig, workload: Workload, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Random tokens, their mask and, of a model that tells two texts apart, the second from the middle on."""
        import torch

        ids = random_tokens(config, workload, generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if getattr(config, "type_vocab_size", 0) > 1:
            length = ids.shape[1]
            inputs["token_type_ids"] = (torch.arange(length) >= (length + 1) // 2).long().repeat(len(ids), 1)
        return inputs

    def pad_inputs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """What of the rows a tokenizer made, as long as the longest."""
        names = [name for name in self.processor.model_input_names if name in rows[0]]
        inputs = [{name: row[name] for name in names} for row in rows]
        return dict(self.processor.pad(inputs, return_tensors="pt"))

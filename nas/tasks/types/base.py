"""TaskType: how a task processes data, collates batches, selects the scored outputs and computes its metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nas.tasks.batches import PARENT, PARENT_TOKENS, Batch, Row, model_inputs
from nas.tasks.metrics import Metric
from nas.tasks.own_metrics import load_metric
from search_spaces import TASKS, InputError, Layout, SubnetConfig
from search_spaces.errors import did_you_mean

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedModel

    from nas.recipe.schema import TaskSettings
    from nas.tasks.losses import Activation, LogitsAndLabels, PredictionsAndLabels
    from predictors import Workload

EVALUATION_BATCH_SIZE = 64
MAX_BATCH_LOGITS = 2**26
"""Most logits over the vocabulary in one evaluation batch: 256 MB."""


@dataclass(frozen=True)
class TaskInputs:
    """The parts of a recipe and its model that a task type needs.

    Attributes:
        settings: The section ``task`` of the recipe.
        config: The model's Hugging Face config.
        processor: The tokenizer, image processor or speech processor.
        parent_processor: That of the model itself; another one than ``processor`` where this has fewer pieces.
        model: Hub id or folder of the model, for errors.
        seed: The recipe's seed.
        head_names: Class names of a trained head by output; None without a trained head.
        load_parent: Loads the recipe's model as it is; None where its weights are not needed, as for an estimate.
    """

    settings: TaskSettings
    config: PreTrainedConfig
    processor: Any
    parent_processor: Any
    model: str
    seed: int
    head_names: list[str] | None
    load_parent: Callable[[], PreTrainedModel] | None


class TaskType(ABC):
    """The task of a recipe with its loaded training and test data.

    Attributes:
        processor_class: Name of the auto class of transformers that loads the processor.
        processor_kwargs: Arguments with which it is loaded.
        folder_builder: Builder of `datasets` that reads a folder of data.
        has_vocabulary_logits: Whether the logits have one entry per token of the vocabulary.
        strides: Whether held-out texts may be read in windows that overlap.
        reads_blocks: Whether training examples are blocks of as many tokens each, read alike every time: the likeliest
            classes of a teacher's predictions on them are kept, not all logits.
        reads_coco: Whether a JSON file of data is one of objects in images, as COCO has them.
        reads_lines: Whether each line of a plain text file is an example.
        per_token_metrics: Metrics that do not compare between vocabularies, because they are means over tokens.
        whole_set_metrics: Metrics that compare the examples with each other, so that they have no value on a slice.
        reference_columns: Columns of a row that `example_stats` reads in addition to the batch, such as an answer.
        names: Class names by id; empty if the task has no classes.
        problem_type: The ``problem_type`` of the model's config, if the task needs one.
        activation: How logits become a prediction.
        label: Column of the labels; None if there are none to show.
        train: Training examples, before processing; the search slice is drawn from them.
        test: Held-out examples.
    """

    processor_class: ClassVar[str] = "AutoTokenizer"
    processor_kwargs: ClassVar[Mapping[str, Any]] = {}
    folder_builder: ClassVar[str] = "imagefolder"
    has_vocabulary_logits: ClassVar[bool] = False
    strides: ClassVar[bool] = False
    reads_blocks: ClassVar[bool] = False
    reads_coco: ClassVar[bool] = False
    reads_lines: ClassVar[bool] = False
    per_token_metrics: ClassVar[frozenset[str]] = frozenset()
    whole_set_metrics: ClassVar[frozenset[str]] = frozenset()
    reference_columns: ClassVar[tuple[str, ...]] = ()
    names: list[str]
    label: str | None = None
    problem_type: str | None = None
    activation: Activation = "softmax"

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        """Checks the data and prepares its examples.

        Raises:
            InputError: If the data lacks something that the task needs.
        """
        self.task = inputs.settings
        self.config = inputs.config
        self.processor, self.parent_processor = inputs.processor, inputs.parent_processor
        self.names = []
        self.load_parent = inputs.load_parent
        self.train, self.test = train, test

    @property
    def label_column(self) -> str | None:
        """The label column of the recipe, None if it names none.

        Raises:
            InputError: If it names several.
        """
        if isinstance(self.task.label, list):
            raise InputError(
                f"`task.label` must name one column for {self.task.type}, but got {self.task.label}; name one of them."
            )
        return self.task.label

    @property
    def beside(self) -> Sequence[TaskType]:
        """Tasks whose ``test`` is scored beside that of this one; a metric that they have is theirs."""
        return ()

    @property
    def beside_search(self) -> Sequence[TaskType]:
        """Those of `beside` whose ``train`` is scored beside the search slice."""
        return ()

    @property
    def passes(self) -> int:
        """Passes of a model that an example takes."""
        return 1

    def input_columns(self, examples: Dataset) -> tuple[str, ...]:
        """The columns that make an example: two rows are duplicates if they are equal; none where that is not "
        "known."""
        return ()

    @property
    def labels_tokens(self) -> bool:
        """Whether the outputs have a row for every token, not one vector for every example."""
        return TASKS[self.task.type].labels_tokens

    @property
    def keeps_channels(self) -> bool:
        """Whether channels of the residual stream keep their order, because they are the output."""
        return "hidden_size" in TASKS[self.task.type].kept

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, Metric]:
        """Name -> metric; a metric is computed from what `example_stats` returns."""

    @abstractmethod
    def process(self, examples: Dataset, source: str) -> Dataset:
        """Converts examples to rows of model inputs with labels; ``source`` names the data in errors."""

    @abstractmethod
    def collate(self, rows: list[Row]) -> Batch:
        """Collates rows to a batch of model inputs with labels."""

    def forward(self, model: Any, batch: Batch, **kwargs: Any) -> Any:
        """Runs a model on a batch; the outputs have its ``loss`` on the labels."""
        return model(**batch, **kwargs)

    def importance_loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """Returns the number whose change says how important a part of a model is, from the outputs of `forward`."""
        return outputs.loss

    @abstractmethod
    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Returns the logits that are scored, each with its labels."""

    def divergence(
        self, student: Sequence[LogitsAndLabels], teacher: Sequence[PredictionsAndLabels], temperature: float
    ) -> torch.Tensor:
        """Returns the divergence of a student's outputs from its teacher's, both from `logits_and_labels`."""
        from nas.tasks.losses import divergence

        return divergence(student, teacher, self.activation, temperature)

    @abstractmethod
    def example_stats(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Computes the statistics of each example that metrics are computed from; they are small enough to keep.

        Args:
            model: In evaluation mode, on the device of the batch.
            batch: Collated rows.
            rows: For each example, its rows with the ``reference_columns``.
            metric_names: Names of the metrics that will be computed.

        Returns:
            Name -> array (examples, ...).
        """

    def compare_examples(
        self, stats: Mapping[str, np.ndarray], metric_names: Sequence[str]
    ) -> Mapping[str, np.ndarray]:
        """Adds the statistics that these metrics need and that depend on all other examples."""
        return stats

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the data: a process that only scores does not need it."""
        return {name: value for name, value in self.__dict__.items() if name not in ("train", "test", "load_parent")}

    @classmethod
    def save_processor(cls, processor: Any, model: str, layout: Layout, subnet: SubnetConfig, folder: Path) -> None:
        """Writes the processor, and what else a model folder needs beside its weights.

        Args:
            processor: The tokenizer, image processor or speech processor.
            model: Hub id or folder of the recipe's model.
            layout: The layout of this model.
            subnet: The subnetwork in the folder.
            folder: The model folder.
        """
        processor.save_pretrained(folder)

    def configure(self, config: PreTrainedConfig) -> None:
        """Sets the fields of a model's config that the task needs, before training."""
        if self.problem_type is not None:
            config.problem_type = self.problem_type

    def evaluation_collator(self) -> Callable[[list[Row]], Batch]:
        """Returns the collator of evaluation sets, which gives the same batch on every call."""
        return self.collate

    def add_labels(self, batches: Sequence[dict[str, torch.Tensor]]) -> None:
        """Adds the labels that the recipe's model gives to those batches of an evaluation set that lack them.

        It takes as long as scoring this model, so it is done when the batches are first scored.
        """
        return  # most have their labels in the data

    def parent(self) -> PreTrainedModel:
        """Loads the recipe's model to label examples with."""
        import torch

        assert self.load_parent is not None
        return self.load_parent().eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def group_by_example(self, rows: Iterable[Row]) -> list[list[Row]]:
        """Groups rows by example."""
        return [[row] for row in rows]

    @property
    def evaluation_batch_size(self) -> int:
        """Examples per evaluation batch; fewer where logits over the vocabulary would exceed `MAX_BATCH_LOGITS`."""
        if not self.has_vocabulary_logits:
            return EVALUATION_BATCH_SIZE
        return min(EVALUATION_BATCH_SIZE, self.examples_within(MAX_BATCH_LOGITS))

    def examples_within(self, logits: int) -> int:
        """How many examples have at most so many logits over the vocabulary; at least one."""
        return max(1, logits // (self.task.max_length * self.config.vocab_size))

    def metric(self, name: str) -> Metric:
        """Returns a metric by name: one of the task, or of ``task.metrics`` in the recipe.

        Raises:
            InputError: If there is no metric of that name.
        """
        if name in self.task.metrics:
            return load_metric(self.task.metrics[name], tuple(self.names))
        if name not in self.metrics:
            task_name = self.problem_type or self.task.type
            raise InputError(
                f"`objectives` and `constraints` must name metrics of this task ({task_name}), but got `{name}`; "
                f"{did_you_mean(name, [*self.metrics, *self.task.metrics])}; `task.metrics` adds others."
            )
        return self.metrics[name]

    @classmethod
    @abstractmethod
    def dummy_inputs(
        cls, config: PreTrainedConfig, workload: Workload, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Returns random inputs of a workload's shape, without padding."""


def random_tokens(config: PreTrainedConfig, workload: Workload, generator: torch.Generator) -> torch.Tensor:
    """Returns random token ids (batch, sequence)."""
    import torch

    assert workload.sequence_length is not None
    shape = (workload.batch_size, workload.sequence_length)
    pieces = getattr(config, "vocab_size", None) or config.get_text_config().vocab_size  # of a part that reads text
    return torch.randint(0, pieces, shape, generator=generator)


class TextTask(TaskType):
    """A task on tokenized texts."""

    @classmethod
    def dummy_inputs(
        cls, config: PreTrainedConfig, workload: Workload, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Returns random tokens and their mask; with token type ids, the second half is the second text."""
        import torch

        ids = random_tokens(config, workload, generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if getattr(config, "type_vocab_size", 0) > 1:
            length = ids.shape[1]
            inputs["token_type_ids"] = (torch.arange(length) >= (length + 1) // 2).long().repeat(len(ids), 1)
        return inputs

    @property
    def is_trimmed(self) -> bool:
        """Whether the tokenizer has fewer pieces than the parent's."""
        return self.processor is not self.parent_processor

    def parent_tokens(self, tokens: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
        """Rows of what the parent's tokenizer returned for texts, for the column `PARENT_TOKENS`."""
        return [dict(zip(tokens, values, strict=True)) for values in zip(*tokens.values(), strict=True)]

    def evaluation_collator(self) -> Callable[[list[Row]], Batch]:
        """Returns the collator of evaluation sets, which also has the texts as the parent reads them."""
        if not self.is_trimmed:
            return self.collate

        def collate(rows: list[Row]) -> Batch:
            texts = [text for row in rows for text in row.get(PARENT_TOKENS, ())]
            tokens = self.parent_processor.pad(texts, return_tensors="pt") if texts else {}
            return {**self.collate(rows), **{PARENT + name: tensor for name, tensor in tokens.items()}}

        return collate

    def parent_inputs(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The texts of a batch of an evaluation set as the parent reads them; they are taken out of the batch."""
        if not self.is_trimmed:
            return model_inputs(batch)
        names = [name for name in batch if name.startswith(PARENT)]
        return {name.removeprefix(PARENT): batch.pop(name) for name in names}

    def pad_inputs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """Pads the tokenizer's outputs in the rows to the longest one."""
        names = [name for name in self.processor.model_input_names if name in rows[0]]
        inputs = [{name: row[name] for name in names} for row in rows]
        return dict(self.processor.pad(inputs, return_tensors="pt"))

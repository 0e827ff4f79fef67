"""Text classification: the labels of a text or of a pair of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nas.tasks.batches import Batch, Row
from nas.tasks.data import text_columns
from nas.tasks.rows import map_examples
from nas.tasks.types.base import TaskInputs, TextTask
from nas.tasks.types.classification import Classification, targets

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedConfig


class TextClassification(Classification, TextTask):
    """Texts are truncated to ``task.max_length`` tokens."""

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        self.columns = text_columns(self.train, self.task.text, self.task.train)

    def input_columns(self, examples: Dataset) -> tuple[str, ...]:
        """The texts."""
        return tuple(self.columns)

    def configure(self, config: PreTrainedConfig) -> None:
        """Also sets ``pad_token_id``: the head of a decoder needs it to find the last token before padding."""
        super().configure(config)
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = self.processor.pad_token_id

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Tokenizes the texts and converts labels to targets."""
        text_columns(examples, self.columns, source)
        columns, tokenizer, length, label = self.columns, self.processor, self.task.max_length, self.label
        problem_type, classes = self.problem_type, len(self.names)

        def tokenize(rows: dict[str, Any]) -> dict[str, Any]:
            tokens = tokenizer(*(rows[c] for c in columns), truncation=True, max_length=length)
            return {**tokens, "labels": targets(rows[label], problem_type, classes)}

        return map_examples(examples, tokenize)

    def collate(self, rows: list[Row]) -> Batch:
        """Pads the tokens to the longest text."""
        import torch

        return {**self.pad_inputs(rows), "labels": torch.tensor([row["labels"] for row in rows])}

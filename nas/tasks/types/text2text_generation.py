"""Text-to-text generation, such as translation and summarization, with an encoder and a decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nas.runs.progress import print_line
from nas.tasks.batches import Row
from nas.tasks.data import require_column, require_texts, string_columns, text_column
from nas.tasks.rows import map_examples
from nas.tasks.types.base import TaskInputs, TextTask, random_tokens
from nas.tasks.types.sequence_to_sequence import SequenceToSequence
from search_spaces import InputError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedConfig

    from predictors import Workload


class Text2TextGeneration(SequenceToSequence, TextTask):
    """Source and target texts, both truncated to ``task.max_length`` tokens."""

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        self.source = text_column(train, self.task.text, self.task.train)
        others = [name for name in string_columns(train) if name != self.source]
        if self.label_column is None and not others:
            raise InputError(
                f"`task.label` must name the column of target texts, but `{self.task.train}` has only "
                f"{train.column_names}."
            )
        self.label = self.target = self.label_column or others[0]
        if None in (self.task.text, self.label_column):
            print_line(
                f"texts      from column `{self.source}` to `{self.target}`; "
                "set `task.text` and `task.label` to choose others"
            )

    def input_columns(self, examples: Dataset) -> tuple[str, ...]:
        """The source text."""
        return (self.source,)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of encoder and decoder."""
        return self.processor

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Tokenizes both texts and keeps the target text."""
        for column, key in ((self.source, "task.text"), (self.target, "task.label")):
            require_column(examples, column, source, key)
            require_texts(examples, column, source, key)
        text, target, tokenizer, length = self.source, self.target, self.processor, self.task.max_length

        def tokenize(rows: dict[str, Any]) -> dict[str, Any]:
            tokens = tokenizer(rows[text], truncation=True, max_length=length)
            labels = tokenizer(text_target=rows[target], truncation=True, max_length=length)["input_ids"]
            return {**tokens, "labels": labels, "target": rows[target]}

        return map_examples(examples, tokenize)

    def encoder_inputs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """Pads the tokens to the longest text."""
        return self.pad_inputs(rows)

    @classmethod
    def dummy_inputs(
        cls, config: PreTrainedConfig, workload: Workload, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Returns random tokens as inputs of the encoder and of the decoder."""
        return {
            **super().dummy_inputs(config, workload, generator),
            "decoder_input_ids": random_tokens(config, workload, generator),
        }

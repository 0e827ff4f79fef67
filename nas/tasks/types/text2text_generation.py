"""Text-to-text generation, such as translation and summarization, with an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.runs.progress import print_line
from nas.tasks import metrics
from nas.tasks.batches import BYTES, Batch, Row
from nas.tasks.data import require_column, require_texts, string_columns, text_column
from nas.tasks.metrics import Metric
from nas.tasks.rows import map_examples
from nas.tasks.types.base import TaskInputs, TextTask, random_tokens
from nas.tasks.types.sequence_to_sequence import SequenceToSequence
from search_spaces import InputError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedModel

    from predictors import Workload


class Text2TextGeneration(SequenceToSequence, TextTask):
    """Source and target texts, both truncated to ``task.max_length`` tokens.

    Bits per byte count the bytes of the target, as far as it is not cut off, so they compare between tokenizers.
    """

    reference_columns = (*SequenceToSequence.reference_columns, BYTES)
    metrics: Mapping[str, Metric] = {**SequenceToSequence.metrics, "bits_per_byte": metrics.bits_per_byte}

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
            written = tokenizer.batch_decode(labels, skip_special_tokens=True)
            return {
                **tokens,
                "labels": labels,
                "target": rows[target],
                BYTES: [len(each.encode()) for each in written],
            }

        return map_examples(examples, tokenize)

    def example_stats(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Also returns the number of tokens of each target and of its bytes."""
        stats = super().example_stats(model, batch, rows, metric_names)
        n_bytes = np.array([row[BYTES] for (row,) in rows])
        return {**stats, "n_tokens": stats["n_scored"], "n_bytes": n_bytes}

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

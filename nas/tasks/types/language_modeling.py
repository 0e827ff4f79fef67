"""Language modeling: the common part of causal and masked language models, which read blocks of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from nas.tasks import metrics
from nas.tasks.batches import IGNORE_INDEX, Batch, Row, model_inputs
from nas.tasks.data import text_column
from nas.tasks.metrics import Metric, object_array
from nas.tasks.rows import map_examples
from nas.tasks.types.base import TaskInputs, TextTask
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


class LanguageModeling(TextTask):
    """Texts are joined and cut into blocks of exactly ``task.max_length`` tokens; the remainder is dropped.

    Blocks are cut before the search slice is drawn, so they keep the order of the text. Loss, perplexity and accuracy
    are means over tokens; their standard errors are over blocks.
    """

    has_vocabulary_logits = True
    metrics: Mapping[str, Metric] = {
        "loss": metrics.ratio_of_sums("loss", "n_scored"),
        "perplexity": metrics.perplexity,
        "accuracy": metrics.ratio_of_sums("correct", "n_scored"),
    }

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        column = text_column(train, self.task.text, self.task.train)
        self.train = self._cut_blocks(train, column, self.task.train)
        self.test = self._cut_blocks(test, text_column(test, column, self.task.test), self.task.test)

    def input_columns(self, examples: Dataset) -> tuple[str, ...]:
        """The tokens of a block."""
        return ("input_ids",)

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Returns the blocks unchanged: they are rows of model inputs."""
        return examples

    def example_stats(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns the loss and the predicted tokens of each block, not the logits over the vocabulary."""
        from nas.tasks.losses import loss_by_example

        outputs = self.logits_and_labels(model(**model_inputs(batch)), batch)
        loss, count = loss_by_example(outputs, self.activation)
        labels, predictions = outputs[0][1].cpu().numpy(), outputs[0][0].argmax(-1).cpu().numpy()
        has_label = labels != IGNORE_INDEX
        return {
            "loss": loss.double().cpu().numpy(),
            "n_scored": count.cpu().numpy(),
            "correct": ((labels == predictions) & has_label).sum(1),
            "labels": object_array([t[k] for t, k in zip(labels, has_label, strict=True)]),
            "predictions": object_array([g[k] for g, k in zip(predictions, has_label, strict=True)]),
        }

    def _cut_blocks(self, texts: Dataset, column: str, source: str) -> Dataset:
        """Tokenizes texts, joins them a thousand at a time, and cuts the tokens into blocks (``input_ids``)."""
        tokenizer, length = self.processor, self.task.max_length

        def cut(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
            ids = list(chain.from_iterable(tokenizer(rows[column], verbose=False)["input_ids"]))
            return {"input_ids": [ids[k : k + length] for k in range(0, len(ids) - length + 1, length)]}

        blocks = map_examples(texts, cut)
        if not len(blocks):
            raise InputError(
                f"the texts of `{source}` must fill at least one block of `task.max_length` tokens, but they have "
                f"fewer than {length}; lower it or add text."
            )
        return blocks

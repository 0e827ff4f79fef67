"""Language modeling: the common part of causal and masked language models, which read blocks of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.tasks import metrics
from nas.tasks.batches import BYTES, IGNORE_INDEX, Batch, Row, model_inputs
from nas.tasks.blocks import Tokens
from nas.tasks.data import text_column
from nas.tasks.metrics import Metric, object_array
from nas.tasks.rows import map_examples
from nas.tasks.types.base import TaskInputs, TextTask
from search_spaces import InputError, Layout

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

BITS_PER_BYTE = "bits_per_byte"
PARENT_DIVERGENCE = "parent_divergence"
"""Mean divergence from the parent's predictions of tokens, where a batch has them; it is no objective."""
CONTEXT, TOKENS = "context", "tokens"
"""Columns with the number of first tokens of a block that are not scored, at least one, and of those after them.
`BYTES` are those of the text of the latter."""


class LanguageModeling(TextTask):
    """Texts are joined and cut into blocks of exactly ``task.max_length`` tokens; the remainder is dropped.

    Blocks are cut before the search slice is drawn, so they keep the order of the text. A tokenizer with fewer pieces
    has the same texts in its blocks, in more tokens. Loss, perplexity and accuracy are means over tokens; their
    standard errors are over blocks. Bits per byte count the bytes of the text, so they compare between tokenizers;
    those of a masked model are its loss on masked tokens for all tokens.
    """

    has_vocabulary_logits = True
    per_token_metrics = frozenset({"loss", "perplexity", "accuracy"})
    reference_columns = (TOKENS, BYTES)
    metrics: Mapping[str, Metric] = {
        "loss": metrics.ratio_of_sums("loss", "n_scored"),
        "perplexity": metrics.perplexity,
        "accuracy": metrics.ratio_of_sums("correct", "n_scored"),
        BITS_PER_BYTE: metrics.bits_per_byte,
    }

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        column = text_column(train, self.task.text, self.task.train)
        self.train = self._cut_blocks(train, column, self.task.train)
        of_test = text_column(test, column, self.task.test)
        self.test = self._cut_blocks(test, of_test, self.task.test, self.task.stride)

    def input_columns(self, examples: Dataset) -> tuple[str, ...]:
        """The tokens of a block."""
        return ("input_ids",)

    def metric(self, name: str) -> Metric:
        """Returns a metric by name; InputError if it needs bytes, which only a fast tokenizer knows."""
        if name == PARENT_DIVERGENCE and name not in self.task.metrics:
            return metrics.ratio_of_sums(PARENT_DIVERGENCE, "n_scored")
        if name == BITS_PER_BYTE and name not in self.task.metrics and not self.processor.is_fast:
            raise InputError(
                f"`{name}` needs a fast tokenizer, which knows the bytes of its tokens, but the model has a "
                f"{type(self.processor).__name__}; take `loss`."
            )
        return super().metric(name)

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Returns the blocks unchanged: they are rows of model inputs."""
        return examples

    def example_stats(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns the loss and the predicted tokens of each block, not the logits over the vocabulary."""
        from nas.tasks.losses import divergence_by_example, loss_by_example
        from nas.tasks.top_classes import TopClasses

        outputs = self.logits_and_labels(model(**model_inputs(batch)), batch)
        loss, count = loss_by_example(outputs, self.activation)
        labels, predictions = outputs[0][1].cpu().numpy(), outputs[0][0].argmax(-1).cpu().numpy()
        has_label = labels != IGNORE_INDEX
        apart, parent = dict[str, np.ndarray](), TopClasses.in_batch(batch)
        if parent is not None:
            apart[PARENT_DIVERGENCE] = divergence_by_example(outputs, parent).double().cpu().numpy()
        return {
            **apart,
            "loss": loss.double().cpu().numpy(),
            "n_scored": count.cpu().numpy(),
            "n_tokens": np.array([row[TOKENS] for (row,) in rows]),
            "n_bytes": np.array([row[BYTES] for (row,) in rows]),
            "correct": ((labels == predictions) & has_label).sum(1),
            "labels": object_array([t[k] for t, k in zip(labels, has_label, strict=True)]),
            "predictions": object_array([g[k] for g, k in zip(predictions, has_label, strict=True)]),
        }

    def _cut_blocks(self, texts: Dataset, column: str, source: str, stride: int | None = None) -> Dataset:
        """Tokenizes texts, joins them a thousand at a time, and cuts the tokens into blocks (``input_ids``)."""
        length, longest = self.task.max_length, Layout(self.config).inputs.max_sequence_length

        def cut(rows: dict[str, list[str]]) -> dict[str, Any]:
            parents = Tokens.of(self.parent_processor, rows[column])
            own, blocks = parents, parents.blocks(length, stride)
            if self.is_trimmed:
                own = Tokens.of(self.processor, rows[column])
                blocks = own.same_text(parents, blocks, longest)
            ids = [own.ids[block].tolist() for block in blocks]
            context = [1 if stride is None or not block.start else length - stride for block in blocks]
            counts = {
                CONTEXT: context,
                TOKENS: [len(row) - before for row, before in zip(ids, context, strict=True)],
                BYTES: [own.bytes_after(before, block) for block, before in zip(blocks, context, strict=True)],
            }
            return {"input_ids": ids, **counts}

        blocks = map_examples(texts, cut)
        if not len(blocks):
            raise InputError(
                f"the texts of `{source}` must fill at least one block of `task.max_length` tokens, but they have "
                f"fewer than {length}; lower it or add text."
            )
        return blocks

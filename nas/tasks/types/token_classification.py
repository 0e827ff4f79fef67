"""Token classification: a list of words and a list of as many tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nas.tasks import metrics
from nas.tasks.batches import IGNORED, Batch, Row, model_inputs
from nas.tasks.data import TEXT_DTYPES, need_column
from nas.tasks.labels import is_list
from nas.tasks.metrics import Metric, objects
from nas.tasks.types.base import TaskInputs, TextTask, padded_labels
from nas.tasks.types.classification import with_class_names
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from nas.tasks.losses import Scored

OUTSIDE = "O"
"""The tag of words that belong to nothing; ``f1`` leaves it out."""


class TokenClassification(TextTask):
    """Tags of words, such as named entities; a word's first token carries its tag, what is cut off is not scored.

    ``f1`` is that of words (micro, without the tag `O`), not of whole entities: ``task.metrics`` may add one.
    """

    processor_options: ClassVar[Mapping[str, Any]] = {"add_prefix_space": True}
    metrics: Mapping[str, Metric] = {
        "f1": metrics.micro_f1,
        "accuracy": metrics.mean_of("right", "scored"),
        "loss": metrics.mean_of("loss", "scored"),
    }

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        self.label = self.task.label or "ner_tags"
        for split, source in ((train, self.task.train), (test, self.task.test)):
            need_column(split, self.label, source, "task.label")
            if not is_list(split.features[self.label]):
                raise InputError(
                    f"`task.label` must name a column of lists of tags, but `{self.label}` of `{source}` is "
                    f"{split.features[self.label]}."
                )
        self.words = _words_column(train, self.task.text, self.label, self.task.train)
        self.train, self.test, self.names = with_class_names(inputs, train, test, self.label)
        self.outside = self.names.index(OUTSIDE) if OUTSIDE in self.names else IGNORED

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Tokens of the words, and the tag of each word at its first token."""
        words, label, tokenizer, length = self.words, self.label, self.processor, self.task.max_length
        _need_tags(examples, words, label, source)

        def tokenize(rows: dict[str, Any]) -> dict[str, Any]:
            tokens = tokenizer(rows[words], is_split_into_words=True, truncation=True, max_length=length)
            tags = [_aligned(tokens.word_ids(i), row) for i, row in enumerate(rows[label])]
            return {**tokens, "labels": tags}

        return examples.map(tokenize, batched=True, remove_columns=examples.column_names)

    def collate(self, rows: list[Row]) -> Batch:
        """Tokens padded to the longest text, their labels alike."""
        inputs = self.padded(rows)
        return {**inputs, "labels": padded_labels(rows, inputs["input_ids"].shape[1], self.processor.padding_side)}

    def scored(self, outputs: Any, batch: Batch) -> list[Scored]:
        """The scores of each token (examples, tokens, tags)."""
        return [(outputs.logits, batch["labels"])]

    def found(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], wanted: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Of each text its tags and the predicted ones, and what is counted of them."""
        from nas.tasks.losses import loss_by_example

        outputs = model(**model_inputs(batch))
        loss, scored = loss_by_example(self.scored(outputs, batch), self.activation)
        true, guess = batch["labels"].cpu().numpy(), outputs.logits.argmax(-1).cpu().numpy()
        real, named, called = true != IGNORED, true != self.outside, guess != self.outside
        return {
            "loss": loss.double().cpu().numpy(),
            "scored": scored.cpu().numpy(),
            "right": ((true == guess) & real).sum(1),
            "hits": ((true == guess) & real & named).sum(1),
            "guesses": (called & real).sum(1),
            "truths": (named & real).sum(1),
            "labels": objects([t[k] for t, k in zip(true, real, strict=True)]),
            "predictions": objects([g[k] for g, k in zip(guess, real, strict=True)]),
        }


def _aligned(words: list[int | None], tags: list[int]) -> list[int]:
    """The tag of each token: its word's at the first token of a word, else none."""
    starts = [word is not None and word != before for word, before in zip(words, [None, *words], strict=False)]
    return [tags[word] if first and word is not None else IGNORED for word, first in zip(words, starts, strict=True)]


def _words_column(dataset: Dataset, wanted: list[str] | str | None, label: str, source: str) -> str:
    """The column of words: the one the recipe names, else the only other column of lists of strings."""
    lists = [n for n, f in dataset.features.items() if is_list(f) and getattr(f.feature, "dtype", None) in TEXT_DTYPES]
    columns = [wanted] if isinstance(wanted, str) else wanted or [name for name in lists if name != label]
    if len(columns) != 1 or columns[0] not in lists:
        raise InputError(
            f"`task.text` must name one column of lists of words, but `{source}` offers "
            f"{[name for name in lists if name != label] or dataset.column_names}."
        )
    return columns[0]


def _need_tags(dataset: Dataset, words: str, label: str, source: str) -> None:
    """Raises InputError unless every word has a tag."""
    need_column(dataset, words, source, "task.text")
    for row, (text, tags) in enumerate(zip(dataset[words], dataset[label], strict=True)):
        if text is None or len(text) != len(tags):
            raise InputError(
                f"every word must have a tag, but row {row} of `{source}` has {len(text or ())} words in `{words}` "
                f"and {len(tags)} tags in `{label}`; correct or remove it."
            )

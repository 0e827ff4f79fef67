"""Token classification: a tag for each word of a text, such as named entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nas.tasks import metrics
from nas.tasks.batches import IGNORE_INDEX, Batch, Row, model_inputs
from nas.tasks.data import TEXT_DTYPES, require_column
from nas.tasks.entities import OUTSIDE_TAG, entity_counts
from nas.tasks.labels import is_list
from nas.tasks.metrics import Metric, object_array
from nas.tasks.rows import map_examples
from nas.tasks.types.base import TaskInputs, TextTask
from nas.tasks.types.classification import with_class_names
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from nas.tasks.losses import LogitsAndLabels


class TokenClassification(TextTask):
    """The first token of a word carries its tag; truncated words are not scored.

    ``f1`` is the micro F1 over words, without the tag `O`; ``entity_f1`` that over entities of several words, as
    seqeval computes it.
    """

    processor_kwargs: ClassVar[Mapping[str, Any]] = {"add_prefix_space": True}
    metrics: Mapping[str, Metric] = {
        "f1": metrics.micro_f1,
        "entity_f1": metrics.entity_f1,
        "accuracy": metrics.ratio_of_sums("correct", "n_scored"),
        "loss": metrics.ratio_of_sums("loss", "n_scored"),
    }

    label: str

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        self.label = self.label_column or "ner_tags"
        for split, source in ((train, self.task.train), (test, self.task.test)):
            require_column(split, self.label, source, "task.label")
            if not is_list(split.features[self.label]):
                raise InputError(
                    f"`task.label` must name a column with lists of tags, but `{self.label}` of `{source}` is "
                    f"{split.features[self.label]}."
                )
        self.words = _words_column(train, self.task.text, self.label, self.task.train)
        self.train, self.test, self.names = with_class_names(inputs, train, test, self.label)
        self.outside = self.names.index(OUTSIDE_TAG) if OUTSIDE_TAG in self.names else IGNORE_INDEX

    def input_columns(self, examples: Dataset) -> tuple[str, ...]:
        """The words."""
        return (self.words,)

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Tokenizes the words and puts the tag of each word at its first token."""
        words, label, tokenizer, length = self.words, self.label, self.processor, self.task.max_length
        _require_tags(examples, words, label, source)

        def tokenize(rows: dict[str, Any]) -> dict[str, Any]:
            tokens = tokenizer(rows[words], is_split_into_words=True, truncation=True, max_length=length)
            tags = [_align_tags(tokens.word_ids(i), row) for i, row in enumerate(rows[label])]
            return {**tokens, "labels": tags}

        return map_examples(examples, tokenize)

    def collate(self, rows: list[Row]) -> Batch:
        """Pads tokens and labels to the longest text."""
        from transformers import DataCollatorForTokenClassification

        return dict(DataCollatorForTokenClassification(self.processor, label_pad_token_id=IGNORE_INDEX)(rows))

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Returns the logits (examples, tokens, tags) and the labels."""
        return [(outputs.logits, batch["labels"])]

    def example_stats(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns tags, predicted tags, their counts and the loss of each text."""
        from nas.tasks.losses import loss_by_example

        outputs = model(**model_inputs(batch))
        loss, n_scored = loss_by_example(self.logits_and_labels(outputs, batch), self.activation)
        labels, predictions = batch["labels"].cpu().numpy(), outputs.logits.argmax(-1).cpu().numpy()
        has_label, is_entity, predicted_entity = (
            labels != IGNORE_INDEX,
            labels != self.outside,
            predictions != self.outside,
        )
        true, predicted = (
            object_array([row[k] for row, k in zip(ids, has_label, strict=True)]) for ids in (labels, predictions)
        )
        return {
            **(entity_counts(true, predicted, self.names) if "entity_f1" in metric_names else {}),
            "loss": loss.double().cpu().numpy(),
            "n_scored": n_scored.cpu().numpy(),
            "correct": ((labels == predictions) & has_label).sum(1),
            "true_positives": ((labels == predictions) & has_label & is_entity).sum(1),
            "predicted_positives": (predicted_entity & has_label).sum(1),
            "actual_positives": (is_entity & has_label).sum(1),
            "labels": true,
            "predictions": predicted,
        }


def _align_tags(words: list[int | None], tags: list[int]) -> list[int]:
    """Returns the label of each token: the tag at the first token of a word, else `IGNORE_INDEX`."""
    is_first = [word is not None and word != previous for word, previous in zip(words, [None, *words], strict=False)]
    return [
        tags[word] if first and word is not None else IGNORE_INDEX for word, first in zip(words, is_first, strict=True)
    ]


def _words_column(dataset: Dataset, requested: list[str] | str | None, label: str, source: str) -> str:
    """Returns the column of words: that of the recipe, else the only other column with lists of strings."""
    lists = [n for n, f in dataset.features.items() if is_list(f) and getattr(f.feature, "dtype", None) in TEXT_DTYPES]
    columns = [requested] if isinstance(requested, str) else requested or [name for name in lists if name != label]
    if len(columns) != 1 or columns[0] not in lists:
        raise InputError(
            f"`task.text` must name one column with lists of words, but `{source}` has "
            f"{[name for name in lists if name != label] or dataset.column_names}."
        )
    return columns[0]


def _require_tags(dataset: Dataset, words: str, label: str, source: str) -> None:
    """Raises InputError if a word has no tag."""
    require_column(dataset, words, source, "task.text")
    for row, (text, tags) in enumerate(zip(dataset[words], dataset[label], strict=True)):
        if text is None or len(text) != len(tags):
            raise InputError(
                f"every word must have a tag, but row {row} of `{source}` has {len(text or ())} words in `{words}` "
                f"and {len(tags)} tags in `{label}`; correct or remove the row."
            )

"""Sentence similarity: vectors of texts whose cosine similarity ranks texts as labels, or the parent, do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.runs.progress import print_line
from nas.tasks import metrics
from nas.tasks.batches import LENGTHS, PARENT_TOKENS, Batch, Row
from nas.tasks.data import require_column, require_texts, string_columns
from nas.tasks.metrics import Metric
from nas.tasks.neighbours import cosine_similarity, nearest, partners
from nas.tasks.retrieval import RETRIEVAL_METRICS, TOP, ranking_quality
from nas.tasks.rows import map_examples
from nas.tasks.types.base import TaskType
from nas.tasks.types.feature_extraction import FeatureExtraction
from nas.tasks.types.retrieval import Retrieval
from predictors.measurement.onnx_export import require
from search_spaces import InputError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from nas.tasks.losses import LogitsAndLabels
    from nas.tasks.types.base import TaskInputs

ANSWERS = (("anchor", "positive", "negative"), ("anchor", "positive"), ("query", "answer"), ("question", "answer"))
"""Columns whose second text belongs to the first one."""
TEXTS = (*ANSWERS, ("sentence1", "sentence2"), ("text1", "text2"))
LABELS = ("score", "scores", "similarity_score", "similarity")
SCORES = "scores"


class SentenceSimilarity(FeatureExtraction):
    """Each split may have texts, pairs, triplets, or pairs with scores, in the columns of sentence-transformers.

    Training learns from the parent's vectors of all texts, and from the scores or the answers of its pairs. Pairs are
    ranked against their scores, or against the parent's similarities where they have none. Texts alone are paired with
    texts at all distances. A retrieval set may stand beside the held-out split.
    """

    whole_set_metrics = FeatureExtraction.whole_set_metrics | {"spearman", *RETRIEVAL_METRICS}
    metrics: Mapping[str, Metric] = {
        "spearman": metrics.spearmanr,
        **{name: metrics.mean_of(name) for name in RETRIEVAL_METRICS},
        **FeatureExtraction.metrics,
    }

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        self.retrieval = None if self.task.retrieval is None else Retrieval(inputs, train, test)

    @property
    def beside(self) -> Sequence[TaskType]:
        """The retrieval set of the recipe."""
        return [] if self.retrieval is None else [self.retrieval]

    def metric(self, name: str) -> Metric:
        """Returns a metric by name; those of retrieval are computed by sentence-transformers."""
        if name in RETRIEVAL_METRICS:
            require("sentence_transformers", extra="embeddings", what=f"`{name}`")
        return super().metric(name)

    def prepare(self, train: Dataset, test: Dataset) -> None:
        """Finds the columns of both splits, and what training learns from besides the parent."""
        for examples, source in ((train, self.task.train), (test, self.task.test)):
            if self._columns(examples, source)[1] is None:
                print_line(
                    f"scores     none in {source.rpartition('/')[2]}: the parent's similarities take their place"
                )
        texts, score = self._columns(train, self.task.train)
        self.learns_answers = score is None and tuple(texts) in ANSWERS

    def input_columns(self, examples: Dataset) -> tuple[str, ...]:
        """The texts of a pair or triplet."""
        return tuple(self._text_columns(examples, self.task.train))

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Returns one row for each example: the tokens of its texts, one after another, their numbers, its score."""
        texts, score = self._columns(examples, source)

        def rows(batch: dict[str, list[Any]]) -> dict[str, Any]:
            by_example = list(zip(*(self._tokenized(batch[name]) for name in texts), strict=True))
            scores = batch[score] if score else [float("nan")] * len(by_example)
            joined = [{name: [*chain(*(text[name] for text in of))] for name in of[0]} for of in by_example]
            lengths = [[len(text["input_ids"]) for text in of] for of in by_example]
            columns = {name: [row[name] for row in joined] for name in joined[0]}
            if self.is_trimmed:
                columns[PARENT_TOKENS] = [
                    *map(list, zip(*(self.as_parent(batch[name]) for name in texts), strict=True))
                ]
            return {**columns, LENGTHS: lengths, SCORES: [float(value) for value in scores]}

        return map_examples(examples, rows)

    def _tokenized(self, texts: Sequence[str]) -> list[Row]:
        tokens = self.tokenize(texts)
        return [dict(zip(tokens, values, strict=True)) for values in zip(*tokens.values(), strict=True)]

    def collate(self, rows: list[Row]) -> Batch:
        """Pads the tokens of all texts, those of an example next to each other; scores that are unknown are NaN."""
        import torch

        texts = [text for row in rows for text in _split(row)]
        return {**self.pad_inputs(texts), SCORES: torch.tensor([row[SCORES] for row in rows])}

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Returns the vectors: in training those of each example (examples, texts, channels)."""
        ((vectors, labels),) = super().logits_and_labels(outputs, batch)
        if "labels" in batch or SCORES not in batch:
            return [(vectors, labels)]
        by_example = vectors.unflatten(0, (len(batch[SCORES]), -1))
        return [(by_example, by_example)]

    def training_loss(self, vectors: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Returns the loss on the scores or the answers of the examples; 0 where there are none."""
        from nas.tasks.similarity_losses import order_loss, ranking_loss

        if self.learns_answers and SCORES in batch:
            return ranking_loss(vectors)
        if SCORES in batch and not batch[SCORES].isnan().any():
            return order_loss(vectors, batch[SCORES])
        return super().training_loss(vectors, batch)

    def example_stats(
        self, model: Any, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns the vectors of the texts of each example (examples, texts, channels), and its score."""
        stats = super().example_stats(model, batch, rows, metric_names)
        by_example = {name: values.reshape(len(rows), -1, *values.shape[1:]) for name, values in stats.items()}
        means = {name: by_example[name].mean(1) for name in ("cosine", "loss", "n_scored")}
        return {**by_example, **means, SCORES: batch[SCORES].double().cpu().numpy()}

    def compare_examples(
        self, stats: Mapping[str, np.ndarray], metric_names: Sequence[str]
    ) -> Mapping[str, np.ndarray]:
        """Adds agreement on neighbours; similarities become predictions, and their targets labels."""
        vectors, targets = stats["predictions"], stats["labels"]
        n_examples, n_texts = vectors.shape[:2]
        all_texts = {name: stats[name].reshape(n_examples * n_texts, -1) for name in ("predictions", "labels")}
        compared = {**super().compare_examples(all_texts, metric_names), **_as_retrieval(all_texts, metric_names)}
        by_text = {name: compared[name] for name in ("top10", *RETRIEVAL_METRICS) if name in compared}
        if n_texts == 1:
            other = partners(targets[:, 0])
            vectors, targets = (np.stack([each[:, 0], each[other, 0]], 1) for each in (vectors, targets))
        expected, scores = cosine_similarity(targets[:, 0], targets[:, 1]), stats[SCORES]
        return {
            **stats,
            **{name: values.reshape(n_examples, n_texts).mean(1) for name, values in by_text.items()},
            "predictions": cosine_similarity(vectors[:, 0], vectors[:, 1]),
            "labels": np.where(np.isnan(scores), expected, scores),
        }

    def _columns(self, examples: Dataset, source: str) -> tuple[list[str], str | None]:
        """The text columns of a split, and the column of scores if it has one.

        Raises:
            InputError: If they are not clear, or hold something else.
        """
        texts = self._text_columns(examples, source)
        for column in texts:
            require_texts(examples, column, source)
        label = self.label_column
        if label is not None and len(texts) == 2 and source == self.task.test:
            require_column(examples, label, source, "task.label")
        names = LABELS if label is None else (label,)
        score = next((name for name in names if name in examples.column_names), None) if len(texts) == 2 else None
        if score is not None:
            _require_numbers(examples, score, source)
        return texts, score

    def _text_columns(self, examples: Dataset, source: str) -> list[str]:
        requested = [self.task.text] if isinstance(self.task.text, str) else self.task.text or []
        known = next((list(names) for names in TEXTS if {*names} <= {*examples.column_names}), None)
        found = string_columns(examples)
        if requested and {*requested} <= {*examples.column_names}:
            return requested
        if known is None and len(found) not in (1, 2):
            raise InputError(
                f"`task.text` must name the column of texts, or those of pairs or triplets, but `{source}` has "
                f"{examples.column_names}."
            )
        return known or found


def _as_retrieval(vectors: Mapping[str, np.ndarray], metric_names: Sequence[str]) -> dict[str, np.ndarray]:
    """Retrieval metrics of each text as a query, where those near it for the parent are the relevant ones."""
    count = min(TOP, len(vectors["labels"]) - 1)
    if count < 1 or not {*RETRIEVAL_METRICS} & {*metric_names}:
        return {}
    relevant = [{*texts} for texts in nearest(vectors["labels"], count).tolist()]
    return ranking_quality(nearest(vectors["predictions"], count), relevant)


def _split(row: Row) -> list[Row]:
    """The tokens of each text of an example."""
    ends = np.cumsum(row[LENGTHS])
    tokens = {name: values for name, values in row.items() if name not in (LENGTHS, SCORES, PARENT_TOKENS)}
    return [
        {name: values[end - length : end] for name, values in tokens.items()}
        for length, end in zip(row[LENGTHS], ends, strict=True)
    ]


def _require_numbers(examples: Dataset, column: str, source: str) -> None:
    """Raises InputError unless every row has a score."""
    if not str(getattr(examples.features[column], "dtype", "")).startswith(("float", "int")):
        raise InputError(f"the scores of `{source}` must be numbers, but `{column}` is {examples.features[column]}.")
    empty = examples.data.column(column).null_count
    if empty:
        raise InputError(f"each pair of `{source}` must have a score, but `{column}` is empty in {empty} rows.")

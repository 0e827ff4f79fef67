"""Sentence similarity: vectors of texts whose cosine similarity ranks pairs of texts as scores, or the parent, do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.runs.progress import print_line
from nas.tasks import metrics
from nas.tasks.batches import Batch, Row
from nas.tasks.data import require_column, require_texts, string_columns
from nas.tasks.metrics import Metric
from nas.tasks.neighbours import cosine_similarity, partners
from nas.tasks.rows import map_examples
from nas.tasks.types.feature_extraction import FeatureExtraction
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset

TEXTS = (
    ("sentence1", "sentence2"),
    ("anchor", "positive", "negative"),
    ("anchor", "positive"),
    ("query", "answer"),
    ("question", "answer"),
    ("text1", "text2"),
)
SCORES = ("score", "scores", "similarity_score", "similarity")
EXAMPLE, SCORE = "example", "score"


class SentenceSimilarity(FeatureExtraction):
    """Each split may have texts, pairs, triplets, or pairs with scores, in the columns of sentence-transformers.

    Training reads all texts alike; its target is the parent. Pairs are ranked against their scores, or against the
    parent's similarities where they have none. Texts alone are paired with texts at all distances.
    """

    whole_set_metrics = FeatureExtraction.whole_set_metrics | {"spearman"}
    reference_columns = (SCORE,)
    metrics: Mapping[str, Metric] = {"spearman": metrics.spearmanr, **FeatureExtraction.metrics}

    def prepare(self, train: Dataset, test: Dataset) -> None:
        """Finds the columns of both splits."""
        for examples, source in ((train, self.task.train), (test, self.task.test)):
            score = self._columns(examples, source)[1]
            if score is None:
                print_line(
                    f"scores     none in {source.rpartition('/')[2]}: the parent's similarities take their place"
                )

    def input_columns(self, examples: Dataset) -> tuple[str, ...]:
        """The texts of a pair or triplet."""
        return tuple(self._text_columns(examples, self.task.train))

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Returns one row for each text, with the index of its example and the score of that."""
        texts, score = self._columns(examples, source)

        def rows(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, Any]:
            scores = [float("nan")] * len(indices) if score is None else batch[score]
            tokens = self.tokenize(
                [text for row in zip(*(batch[name] for name in texts), strict=True) for text in row]
            )
            examples_of = [index for index in indices for _ in texts]
            return {**tokens, EXAMPLE: examples_of, SCORE: [float(value) for value in scores for _ in texts]}

        return map_examples(examples, rows, with_indices=True)

    def group_by_example(self, rows: Iterable[Row]) -> list[list[Row]]:
        """Groups the texts of a pair or triplet."""
        return [list(group) for _, group in groupby(rows, key=lambda row: row[EXAMPLE])]

    def example_stats(
        self, model: Any, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns the vectors of the texts of each example (examples, texts, channels), and its score."""
        stats = super().example_stats(model, batch, rows, metric_names)
        by_example = {name: values.reshape(len(rows), -1, *values.shape[1:]) for name, values in stats.items()}
        means = {name: by_example[name].mean(1) for name in ("cosine", "loss", "n_scored")}
        return {**by_example, **means, SCORE: np.array([texts[0][SCORE] for texts in rows])}

    def compare_examples(
        self, stats: Mapping[str, np.ndarray], metric_names: Sequence[str]
    ) -> Mapping[str, np.ndarray]:
        """Adds agreement on neighbours; similarities become predictions, and their targets labels."""
        vectors, targets = stats["predictions"], stats["labels"]
        n_examples, n_texts = vectors.shape[:2]
        all_texts = {name: stats[name].reshape(n_examples * n_texts, -1) for name in ("predictions", "labels")}
        compared = super().compare_examples(all_texts, metric_names)
        top10 = {"top10": compared["top10"].reshape(n_examples, n_texts).mean(1)} if "top10" in compared else {}
        if n_texts == 1:
            other = partners(targets[:, 0])
            vectors, targets = (np.stack([each[:, 0], each[other, 0]], 1) for each in (vectors, targets))
        similarity = {
            "predictions": cosine_similarity(vectors[:, 0], vectors[:, 1]),
            "labels": np.where(np.isnan(stats[SCORE]), cosine_similarity(targets[:, 0], targets[:, 1]), stats[SCORE]),
        }
        return {**stats, **top10, **similarity}

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
        names = SCORES if label is None else (label,)
        score = next((name for name in names if name in examples.column_names), None) if len(texts) == 2 else None
        if score is not None and not str(getattr(examples.features[score], "dtype", "")).startswith(("float", "int")):
            raise InputError(f"the scores of `{source}` must be numbers, but `{score}` is {examples.features[score]}.")
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

"""Text ranking: a cross-encoder scores documents for a query; models are judged by the order of each query's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.runs.progress import print_line
from nas.tasks import metrics
from nas.tasks.batches import PARENT_TOKENS, Batch, Row, model_inputs
from nas.tasks.data import require_column, require_texts
from nas.tasks.metrics import Metric
from nas.tasks.types.base import EVALUATION_BATCH_SIZE, TaskInputs, TextTask
from search_spaces import InputError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedModel

    from nas.tasks.losses import LogitsAndLabels

QUERIES = ("query", "question", "anchor", "sentence1")
DOCUMENTS = ("document", "passage", "answer", "text", "positive", "sentence2", "documents", "passages", "docs")
LABELS = ("label", "score", "relevance", "labels", "scores")
QUERY, RELEVANCE = "query", "relevance"
TOP = 10


class TextRanking(TextTask):
    """A row is a query, a document and a label, as sentence-transformers trains cross-encoders; or a query, a list of
    documents and a list of labels. A label is a number, larger for documents that should come first.

    Labels are not needed: the parent's scores, as probabilities, take their place. A model learns from labels as
    from probabilities, relative to the highest one. An example of the search slice and of metrics is a query with all
    its documents.
    """

    activation = "identity"
    metrics: Mapping[str, Metric] = {
        "ndcg10": metrics.mean_of("ndcg10"),
        "mrr10": metrics.mean_of("mrr10"),
        "loss": metrics.ratio_of_sums("loss", "n_scored"),
    }

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        if inputs.head_names is not None and len(inputs.head_names) != 1:
            raise InputError(
                f"text-ranking needs a model with one score, but the head of `{inputs.model}` has "
                f"{len(inputs.head_names)} outputs; choose a cross-encoder, or a model without a head."
            )
        super().__init__(inputs, train, test)
        self.train, self.test = self._by_query(train, self.task.train), self._by_query(test, self.task.test)
        self.names = inputs.head_names or ["LABEL_0"]
        grades = [grade for split in (self.train, self.test) for row in split[RELEVANCE] for grade in row]
        self.highest = float(np.nanmax([1.0, *grades]))
        if np.nanmin([0.0, *grades]) < 0:
            raise InputError(f"labels must be numbers from 0, but `{self.task.train}` or its test split has others.")
        for examples, source in ((self.train, self.task.train), (self.test, self.task.test)):
            if not np.isnan(examples[0][RELEVANCE]).any():
                continue
            if inputs.head_names is None:
                raise InputError(
                    f"`{source}` needs labels, because `{inputs.model}` has no trained head whose scores could take "
                    "their place; name their column in `task.label`, or choose a cross-encoder."
                )
            print_line(f"labels     none in {source.rpartition('/')[2]}: the parent's scores take their place")

    def configure(self, config: PreTrainedConfig) -> None:
        """Also sets ``pad_token_id``: the head of a decoder needs it to find the last token before padding."""
        super().configure(config)
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = self.processor.pad_token_id

    def _by_query(self, examples: Dataset, source: str) -> Dataset:
        """Returns one row for each query, with the lists of its documents and labels; NaN without labels.

        Raises:
            InputError: If a column is missing, or holds something else.
        """
        from datasets import Dataset

        query, document, label = self._columns(examples, source)
        queries: dict[str, tuple[list[str], list[float]]] = {}
        for row in examples:
            documents = row[document] if isinstance(row[document], list) else [row[document]]
            labels = [math.nan] * len(documents) if label is None else row[label]
            labels = labels if isinstance(labels, list) else [labels]
            if len(labels) != len(documents):
                raise InputError(
                    f"each document needs a label, but `{row[query]}` of `{source}` has {len(documents)} documents "
                    f"and {len(labels)} labels."
                )
            of_query = queries.setdefault(row[query], ([], []))
            of_query[0].extend(documents)
            of_query[1].extend(map(float, labels))
        rows = [{QUERY: q, "documents": texts, RELEVANCE: grades} for q, (texts, grades) in queries.items()]
        return Dataset.from_list(rows)

    def _columns(self, examples: Dataset, source: str) -> tuple[str, str, str | None]:
        columns = [self.task.text] if isinstance(self.task.text, str) else list(self.task.text or ())
        if len(columns) != 2:
            columns = [next((n for n in names if n in examples.column_names), "") for names in (QUERIES, DOCUMENTS)]
        if not {*columns} <= {*examples.column_names}:
            raise InputError(
                f"`task.text` must name the columns of queries and documents, but `{source}` has "
                f"{examples.column_names}."
            )
        require_texts(examples, columns[0], source)
        names = LABELS if self.task.label is None else (str(self.task.label),)
        label = next((name for name in names if name in examples.column_names), None)
        if label is None and self.task.label is not None:
            require_column(examples, names[0], source, "task.label")
        return columns[0], columns[1], label

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Returns one row for each document of a query: the tokens of both, and the label."""

        def rows(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, Any]:
            pairs = [(q, d) for q, texts in zip(batch[QUERY], batch["documents"], strict=True) for d in texts]
            both = [*map(list, zip(*pairs, strict=True))]
            tokens = dict(self.processor(*both, truncation=True, max_length=length))
            if self.is_trimmed:
                parents = self.parent_tokens(self.parent_processor(*both, truncation=True, max_length=length))
                tokens[PARENT_TOKENS] = [[pair] for pair in parents]
            numbers = [index for index, texts in zip(indices, batch["documents"], strict=True) for _ in texts]
            return {**tokens, "number": numbers, RELEVANCE: [grade for grades in batch[RELEVANCE] for grade in grades]}

        length = self.task.max_length
        return examples.map(rows, batched=True, with_indices=True, remove_columns=examples.column_names)

    def group_by_example(self, rows: Iterable[Row]) -> list[list[Row]]:
        """Groups the documents of a query."""
        return [list(group) for _, group in groupby(rows, key=lambda row: row["number"])]

    @property
    def evaluation_batch_size(self) -> int:
        """Queries of an evaluation batch, so that it has about as many documents as others have examples."""
        documents = [len(texts) for texts in self.test["documents"]] if hasattr(self, "test") else [1]
        return max(1, round(EVALUATION_BATCH_SIZE / max(float(np.mean(documents)), 1.0)))

    def collate(self, rows: list[Row]) -> Batch:
        """Pads the tokens to the longest pair; labels that are unknown are NaN."""
        import torch

        return {**self.pad_inputs(rows), "labels": torch.tensor([row[RELEVANCE] for row in rows])}

    def add_labels(self, batches: Sequence[dict[str, torch.Tensor]]) -> None:
        """Puts the parent's scores, as probabilities, in the place of unknown labels."""
        unlabelled = [batch for batch in batches if batch["labels"].isnan().any()]
        if not unlabelled or self.load_parent is None:
            return
        parent = self.parent()
        for batch in unlabelled:
            inputs = {name: tensor.to(parent.device) for name, tensor in self.parent_inputs(batch).items()}
            scores, labels = parent(**inputs).logits[:, 0].float().cpu(), batch["labels"]
            batch["labels"] = labels.where(~labels.isnan(), scores.sigmoid())

    def forward(self, model: Any, batch: Batch, **kwargs: Any) -> Any:
        """Runs a model; its loss is the binary cross-entropy to labels as probabilities, 0 where there are none."""
        import torch.nn.functional as F

        outputs = model(**model_inputs(batch), **kwargs)
        scores, labels = outputs.logits[:, 0], batch["labels"].to(outputs.logits.dtype) / self.highest
        known = ~labels.isnan()
        outputs.loss = 0.0 * scores.sum()
        if known.any():
            outputs.loss = F.binary_cross_entropy_with_logits(scores[known], labels[known])
        return outputs

    def importance_loss(self, outputs: Any, batch: Batch) -> Any:
        """Returns the mean score: what changes it changes the order."""
        return outputs.logits.mean()

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Returns the scores (documents, 1) and the labels."""
        return [(outputs.logits, batch["labels"][:, None])]

    def example_stats(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns the quality of the order of each query's documents, and its share of the loss."""
        outputs = self.forward(model, batch)
        scores = outputs.logits[:, 0].double().cpu().numpy()
        ends = np.cumsum([len(documents) for documents in rows])[:-1]
        grades = np.split(batch["labels"].double().cpu().numpy(), ends)
        by_query = list(zip(np.split(scores, ends), grades, strict=True))
        return {
            "ndcg10": np.array([ndcg(of_query, grade) for of_query, grade in by_query]),
            "mrr10": np.array([reciprocal_rank(of_query, grade) for of_query, grade in by_query]),
            "loss": np.full(len(rows), float(outputs.loss)),
            "n_scored": np.ones(len(rows)),
        }


def ndcg(scores: np.ndarray, grades: np.ndarray) -> float:
    """Normalized discounted cumulative gain at 10 (Järvelin & Kekäläinen 2002), with linear gains; 0 without any.

    Args:
        scores: Of the documents of a query (documents,).
        grades: How relevant they are, none below 0 (documents,).
    """
    from sklearn.metrics import ndcg_score

    if len(grades) == 1:
        return float(grades[0] > 0)
    return float(ndcg_score([grades], [scores], k=TOP))


def reciprocal_rank(scores: np.ndarray, grades: np.ndarray) -> float:
    """One over the rank of the first relevant document, 0 if it is not among the first 10.

    A document is relevant if its grade is above half of the highest.
    """
    order = np.argsort(-scores, kind="stable")[:TOP]
    ranks = np.flatnonzero(grades[order] > grades.max() / 2)
    return 1 / (1 + int(ranks[0])) if len(ranks) else 0.0

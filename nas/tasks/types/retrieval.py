"""Retrieval: the texts that a model ranks first for the queries of a retrieval set, beside a held-out split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.runs.progress import print_line
from nas.tasks import metrics
from nas.tasks.batches import Batch, Row, model_inputs
from nas.tasks.metrics import Metric
from nas.tasks.neighbours import nearest
from nas.tasks.retrieval import RETRIEVAL_METRICS, TOP, RetrievalSet, ranking_quality
from nas.tasks.types.feature_extraction import FeatureExtraction

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

NUMBER = "number"
PROMPTS = (("query",), ("document", "passage", "corpus"))
"""Names of the prompts of queries and of texts in a SentenceTransformer."""


class Retrieval(FeatureExtraction):
    """An example is a query or a text of the corpus; its metrics are means over queries."""

    reference_columns = (NUMBER,)
    metrics: Mapping[str, Metric] = {name: metrics.mean_of(name) for name in RETRIEVAL_METRICS}
    whole_set_metrics = frozenset(RETRIEVAL_METRICS)

    def prepare(self, train: Dataset, test: Dataset) -> None:
        """Reads the set; its queries are the first rows, then come the texts."""
        from datasets import Dataset

        assert self.task.retrieval is not None
        self.set = RetrievalSet.read(self.task.retrieval)
        print_line(f"retrieval  {len(self.set.queries):,} queries, {len(self.set.corpus):,} texts")
        texts = [*self.set.queries, *self.set.corpus]
        self.test = Dataset.from_dict({"text": texts, NUMBER: range(len(texts))})

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Tokenizes the queries and the texts, with the prompts that a model has for them."""
        prompts = [self.modules.prompt_of(*names) for names in PROMPTS]

        def rows(batch: dict[str, list[Any]]) -> dict[str, Any]:
            is_text = [number >= len(self.set.queries) for number in batch[NUMBER]]
            prompted = [prompts[of_text] + text for of_text, text in zip(is_text, batch["text"], strict=True)]
            return {**self.tokenize(prompted, prompt=""), NUMBER: batch[NUMBER]}

        return examples.map(rows, batched=True, remove_columns=["text"])

    def add_labels(self, batches: Sequence[dict[str, torch.Tensor]]) -> None:
        """Adds none: which texts are relevant is known."""

    def example_stats(
        self, model: Any, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns the vector of each query or text, and its number."""
        vectors = self.embeddings(model(**model_inputs(batch)), batch)
        return {"vectors": vectors.cpu().numpy(), NUMBER: np.array([row[NUMBER] for (row,) in rows])}

    def compare_examples(
        self, stats: Mapping[str, np.ndarray], metric_names: Sequence[str]
    ) -> Mapping[str, np.ndarray]:
        """Returns the metrics of each query."""
        vectors, n_queries = stats["vectors"][np.argsort(stats[NUMBER])], len(self.set.queries)
        ranked = nearest(vectors[:n_queries], min(TOP, len(self.set.corpus)), vectors[n_queries:])
        return ranking_quality(ranked, self.set.relevant)

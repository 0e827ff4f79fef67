"""Feature extraction: the vector of a text. There are no labels: models should agree with the recipe's own model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.tasks import metrics
from nas.tasks.batches import PARENT_TOKENS, Batch, Row, model_inputs
from nas.tasks.data import text_column
from nas.tasks.metrics import Metric
from nas.tasks.neighbours import neighbour_agreement
from nas.tasks.rows import map_examples
from nas.tasks.sentence_modules import SentenceModules
from nas.tasks.types.base import TaskInputs, TextTask

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from nas.tasks.losses import LogitsAndLabels
    from search_spaces import Layout, SubnetConfig

NEIGHBOURS = 10


class FeatureExtraction(TextTask):
    """Texts become vectors as the model's SentenceTransformer files say, or by the mean over tokens.

    In evaluation sets, the vectors of the recipe's model are the labels. Training has none: the teacher is this model.
    """

    reads_lines = True
    whole_set_metrics = frozenset({"top10_agreement"})
    activation = "embedding"
    metrics: Mapping[str, Metric] = {
        "cosine_similarity": metrics.mean_of("cosine"),
        "top10_agreement": metrics.mean_of("top10"),
        "loss": metrics.ratio_of_sums("loss", "n_scored"),
    }

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        self.modules = SentenceModules.read(inputs.model)
        self.length = min(self.task.max_length, self.modules.max_length or self.task.max_length)
        self.seed = inputs.seed
        self.prepare(train, test)

    def prepare(self, train: Dataset, test: Dataset) -> None:
        """Checks the columns."""
        self.column = text_column(train, self.task.text, self.task.train)

    def input_columns(self, examples: Dataset) -> tuple[str, ...]:
        """The text."""
        return (self.column,)

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Tokenizes the texts."""
        column = text_column(examples, self.column, source)

        def rows(batch: dict[str, list[Any]]) -> dict[str, Any]:
            parents = {PARENT_TOKENS: [[text] for text in self.as_parent(batch[column])]} if self.is_trimmed else {}
            return {**self.tokenize(batch[column]), **parents}

        return map_examples(examples, rows)

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> dict[str, Any]:
        """Returns the tokens of texts, after a prompt, by default the model's default one, truncated."""
        return dict(self.processor(self.modules.prepared(texts, prompt), truncation=True, max_length=self.length))

    def as_parent(self, texts: Sequence[str]) -> list[Row]:
        """Returns the parent's own tokens of texts."""
        prepared = self.modules.prepared(texts, None)
        return self.parent_tokens(self.parent_processor(prepared, truncation=True, max_length=self.length))

    def collate(self, rows: list[Row]) -> Batch:
        """Pads the tokens to the longest text."""
        return self.pad_inputs(rows)

    def add_labels(self, batches: Sequence[dict[str, torch.Tensor]]) -> None:
        """Adds the vectors of the recipe's model."""
        unlabelled = [batch for batch in batches if "labels" not in batch]
        if not unlabelled or self.load_parent is None:
            return
        parent = self.parent()
        for batch in unlabelled:
            inputs = {name: tensor.to(parent.device) for name, tensor in self.parent_inputs(batch).items()}
            batch["labels"] = self.embeddings(parent(**inputs), inputs).cpu()

    def pooled(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """Returns the pooled hidden states of the texts (texts, channels) in float32."""
        return self.modules.pool(outputs.last_hidden_state.float(), batch["attention_mask"])

    def embeddings(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """Returns the vectors of the texts (texts, channels) in float32, normalized if the model does so."""
        return self.modules.normalized(self.pooled(outputs, batch))

    def forward(self, model: Any, batch: Batch, **kwargs: Any) -> Any:
        """Runs a model; its loss is 1 - the cosine similarity to the labels, or `training_loss` without these."""
        from nas.tasks.losses import loss_by_example

        outputs = model(**model_inputs(batch), **kwargs)
        pairs = self.logits_and_labels(outputs, batch)
        if "labels" in batch:
            outputs.loss = loss_by_example(pairs, self.activation)[0].mean()
        else:
            outputs.loss = self.training_loss(pairs[0][0], batch)
        return outputs

    def training_loss(self, vectors: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Returns the loss of the vectors of a training batch on what its data says of them: nothing, so 0."""
        return 0.0 * vectors.sum()

    def importance_loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """Returns the vectors along random directions.

        The loss of the model itself is zero and flat. The change along a random direction, squared, is in expectation
        the squared change of the vector (Hutchinson 1989).
        """
        import torch
        import torch.nn.functional as F

        vectors = F.normalize(self.embeddings(outputs, batch), dim=-1)
        generator = torch.Generator().manual_seed(self.seed)
        signs = 2.0 * torch.randint(0, 2, vectors.shape, generator=generator) - 1.0
        return (vectors * signs.to(vectors)).sum(1).mean()

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Returns the vectors, and those of the recipe's model where the batch has them."""
        vectors = self.embeddings(outputs, batch)
        return [(vectors, batch.get("labels", vectors))]

    def example_stats(
        self, model: Any, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns both vectors of each text, their cosine similarity, and the loss."""
        from nas.tasks.losses import cosine_similarity

        vectors, labels = self.embeddings(model(**model_inputs(batch)), batch), batch["labels"]
        cosine = cosine_similarity(vectors, labels).double().cpu().numpy()
        return {
            "cosine": cosine,
            "loss": 1.0 - cosine,
            "n_scored": np.ones(len(cosine)),
            "predictions": vectors.cpu().numpy(),
            "labels": labels.cpu().numpy(),
        }

    def compare_examples(
        self, stats: Mapping[str, np.ndarray], metric_names: Sequence[str]
    ) -> Mapping[str, np.ndarray]:
        """Adds the share of each text's nearest neighbours on which both models agree."""
        if "top10_agreement" not in metric_names:
            return stats
        return {**stats, "top10": neighbour_agreement(stats["predictions"], stats["labels"], NEIGHBOURS)}

    @classmethod
    def save_processor(cls, processor: Any, model: str, layout: Layout, subnet: SubnetConfig, folder: Path) -> None:
        """Writes the tokenizer and the files that make the folder a SentenceTransformer."""
        processor.save_pretrained(folder)
        SentenceModules.read(model).write(folder, subnet.embedding_dim, layout.inputs.max_sequence_length)

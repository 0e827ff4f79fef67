"""Image-text retrieval: the images that a model with two towers ranks first for a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.tasks import metrics
from nas.tasks.batches import Batch, Row, model_inputs, row_numbers
from nas.tasks.data import require_images, text_column
from nas.tasks.images import check_images, decode_image, image_inputs, stacked_images, undecoded
from nas.tasks.metrics import Metric
from nas.tasks.neighbours import cosine_similarity, nearest
from nas.tasks.retrieval import TOP
from nas.tasks.types.base import TaskInputs, TaskType
from nas.tasks.types.texts_of_images import parts_of, random_images_and_texts, text_inputs

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedModel

    from nas.tasks.losses import LogitsAndLabels
    from predictors import Workload

TEXT = "text"
RANKS = ("recall10", "mrr10")


class ImageTextRetrieval(TaskType):
    """An example is an image with a text; several images may have equal texts, and each of them is then a hit."""

    processor_class = "AutoProcessor"
    reference_columns = (TEXT,)
    activation = "embedding"
    metrics: Mapping[str, Metric] = {
        **{name: metrics.mean_of(name) for name in RANKS},
        "loss": metrics.ratio_of_sums("loss", "n_scored"),
    }
    whole_set_metrics = frozenset(RANKS)

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        self.images, self.tokenizer = parts_of(inputs)
        self.model = inputs.model
        self.column = text_column(train, self.task.text, self.task.train)

    def input_columns(self, examples: Dataset) -> tuple[str, ...]:
        """The image and its text."""
        return (self.task.image, self.column)

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Computes pixels when a row is read."""
        image, text = self.task.image, text_column(examples, self.column, source)
        require_images(examples, image, source)
        check_images(examples, image, source)

        def transform(rows: dict[str, Any]) -> dict[str, Any]:
            images = [decode_image(stored, source) for stored in rows[image]]
            found = image_inputs(images, self.images, self.config, self.model, source)
            return {**found, TEXT: rows[text], **row_numbers(rows)}

        return undecoded(examples, image).with_transform(transform)

    def collate(self, rows: list[Row]) -> Batch:
        """Stacks images of one size, and pads their texts."""
        return {**stacked_images(rows), **text_inputs(self.tokenizer, self.config, [row[TEXT] for row in rows])}

    def forward(self, model: Any, batch: Batch, **kwargs: Any) -> Any:
        """Runs a model; its loss is CLIP's: the cross-entropy of each image among the texts of a batch, and back.

        Equal texts of a batch are equally right.
        """
        import torch
        import torch.nn.functional as F

        outputs = model(**model_inputs(batch), **kwargs)
        ids = batch["input_ids"]
        is_own = (ids[:, None] == ids).all(2).to(outputs.logits_per_image)
        own = is_own / is_own.sum(1, keepdim=True)
        losses = [F.cross_entropy(logits, own) for logits in (outputs.logits_per_image, outputs.logits_per_text)]
        outputs.loss = torch.stack(losses).mean()
        return outputs

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Returns the vectors of the images and those of the texts."""
        return [(vectors, vectors) for vectors in (outputs.image_embeds, outputs.text_embeds)]

    def example_stats(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns the vectors of each image and of its text, how far they are from each other, and the text."""
        outputs: Any = model(**model_inputs(batch))
        images, texts = (vectors.float().cpu().numpy() for vectors in (outputs.image_embeds, outputs.text_embeds))
        return {
            "images": images,
            "texts": texts,
            "loss": 1.0 - cosine_similarity(images, texts),
            "n_scored": np.ones(len(images)),
            TEXT: np.array([row[TEXT] for (row,) in rows], dtype=object),
        }

    def compare_examples(
        self, stats: Mapping[str, np.ndarray], metric_names: Sequence[str]
    ) -> Mapping[str, np.ndarray]:
        """Returns whether an image of a text is among the ten nearest to it, and the reciprocal rank of the first."""
        images, ids = stats["images"], np.unique(stats[TEXT].astype(str), return_inverse=True)[1]
        is_hit = ids[nearest(stats["texts"], min(TOP, len(images)), images)] == ids[:, None]
        found = is_hit.any(1)
        ranks = {"recall10": found.astype(float), "mrr10": np.where(found, 1.0 / (1 + is_hit.argmax(1)), 0.0)}
        return {**{name: stats[name] for name in ("loss", "n_scored") if name in stats}, **ranks}

    @classmethod
    def dummy_inputs(
        cls, config: PreTrainedConfig, workload: Workload, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Returns random pixels and a few short random texts."""
        return random_images_and_texts(config, workload, generator)

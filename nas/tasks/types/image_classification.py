"""Image classification: the labels of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nas.tasks.batches import Batch, Row, row_numbers
from nas.tasks.data import require_images
from nas.tasks.images import check_images, decode_image, image_inputs, random_images, stacked_images, undecoded
from nas.tasks.types.base import TaskInputs
from nas.tasks.types.classification import Classification, targets

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedConfig

    from predictors import Workload


class ImageClassification(Classification):
    """Images are preprocessed by the model's own image processor."""

    processor_class = "AutoImageProcessor"

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        self.model = inputs.model

    def input_columns(self, examples: Dataset) -> tuple[str, ...]:
        """The image."""
        return (self.task.image,)

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Computes pixels when a row is read, and converts labels to targets."""
        require_images(examples, self.task.image, source)
        check_images(examples, self.task.image, source)
        column, label, problem_type, classes = self.task.image, self.label, self.problem_type, len(self.names)

        def transform(rows: dict[str, Any]) -> dict[str, Any]:
            images = [decode_image(stored, source) for stored in rows[column]]
            return {
                **image_inputs(images, self.processor, self.config, self.model, source),
                "labels": targets(rows[label], problem_type, classes),
                **row_numbers(rows),
            }

        return undecoded(examples, column).with_transform(transform)

    def collate(self, rows: list[Row]) -> Batch:
        """Stacks images of one size."""
        import torch

        return {**stacked_images(rows), "labels": torch.tensor([row["labels"] for row in rows])}

    @classmethod
    def dummy_inputs(
        cls, config: PreTrainedConfig, workload: Workload, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Returns random pixels."""
        return random_images(config, workload, generator)

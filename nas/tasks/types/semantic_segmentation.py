"""Semantic segmentation: a class for each pixel of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.tasks import metrics
from nas.tasks.batches import IGNORE_INDEX, Batch, Row, model_inputs, row_numbers
from nas.tasks.data import require_images
from nas.tasks.images import check_images, decode_image, image_shape, pixels_and_maps_of, random_images, undecoded
from nas.tasks.label_maps import decode_map, map_column, number_of_classes, scored_labels
from nas.tasks.metrics import Metric
from nas.tasks.types.base import EVALUATION_BATCH_SIZE, MAX_BATCH_LOGITS, TaskInputs, TaskType

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedModel

    from nas.tasks.losses import LogitsAndLabels
    from predictors import Workload


class SemanticSegmentation(TaskType):
    """Images and maps of labels are preprocessed by the model's own image processor.

    ``mean_iou`` is the mean over classes of the intersection of predicted and labelled pixels over their union, summed
    over all images, as in `evaluate` and torchmetrics; classes that occur in neither are left out. Pixels with the
    ``semantic_loss_ignore_index`` of the model's config are not scored. The logits, which a model gives for a coarser
    grid, are interpolated to the pixels of the map. Teacher and student are compared on their own grid.
    """

    processor_class = "AutoImageProcessor"
    metrics: Mapping[str, Metric] = {
        "mean_iou": metrics.mean_iou,
        "pixel_accuracy": metrics.ratio_of_sums("correct", "n_scored"),
        "loss": metrics.ratio_of_sums("loss", "n_scored"),
    }

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        self.model, image, head = inputs.model, self.task.image, inputs.head_names
        self.maps = map_column(train, self.label_column, image, self.task.train)
        self.ignored = int(getattr(self.config, "semantic_loss_ignore_index", 255))
        self.reduces = bool(getattr(self.processor, "do_reduce_labels", False))
        found = 0
        for split, source in ((train, self.task.train), (test, self.task.test)):
            require_images(split, self.maps, source, "task.label")
            limit = None if head is None else len(head)
            found = max(found, number_of_classes(split, self.maps, self.ignored, source, limit, reduces=self.reduces))
        own = [str(name) for _, name in sorted(self.config.id2label.items())]
        self.names = head or (own if len(own) == found else [f"LABEL_{number}" for number in range(found)])

    def input_columns(self, examples: Dataset) -> tuple[str, ...]:
        """The image."""
        return (self.task.image,)

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Computes pixels and labels when a row is read."""
        require_images(examples, self.task.image, source)
        check_images(examples, self.task.image, source)
        column, label, ignored, classes = self.task.image, self.maps, self.ignored, len(self.names)

        def transform(rows: dict[str, Any]) -> dict[str, Any]:
            images = [decode_image(stored, source) for stored in rows[column]]
            maps = [decode_map(stored, source) for stored in rows[label]]
            pixels, labels = pixels_and_maps_of(images, maps, self.processor, self.config, self.model, source)
            scored = [scored_labels(each, ignored, classes, label, source, reduces=self.reduces) for each in labels]
            return {"pixel_values": pixels, "labels": scored, **row_numbers(rows)}

        return undecoded(undecoded(examples, column), label).with_transform(transform)

    def collate(self, rows: list[Row]) -> Batch:
        """Stacks images and maps of one size."""
        import torch

        return {name: torch.stack([row[name] for row in rows]) for name in ("pixel_values", "labels")}

    def forward(self, model: Any, batch: Batch, **kwargs: Any) -> Any:
        """Runs a model; its loss is the cross-entropy of the labelled pixels."""
        import torch.nn.functional as F

        outputs = model(**model_inputs(batch), **kwargs)
        labels = batch["labels"]
        outputs.loss = F.cross_entropy(_on_pixels(outputs.logits, labels), labels, ignore_index=IGNORE_INDEX)
        return outputs

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Returns the logits (examples, rows, columns, classes) on the model's grid, and the label at each point."""
        import torch.nn.functional as F

        grid = outputs.logits.shape[-2:]
        labels = F.interpolate(batch["labels"][:, None].float(), size=grid, mode="nearest-exact")[:, 0].long()
        return [(outputs.logits.movedim(1, -1), labels)]

    def example_stats(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns of each image the loss and the pixels of each class that are labelled, predicted, and both."""
        import torch.nn.functional as F

        logits, labels = _on_pixels(model(**model_inputs(batch)).logits, batch["labels"]), batch["labels"]
        loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="none").sum((1, 2))
        is_scored, predictions = labels != IGNORE_INDEX, logits.argmax(1)
        is_correct, classes = is_scored & (predictions == labels), logits.shape[1]
        return {
            "loss": loss.double().cpu().numpy(),
            "n_scored": is_scored.sum((1, 2)).cpu().numpy(),
            "correct": is_correct.sum((1, 2)).cpu().numpy(),
            "labelled_pixels": _pixels_of_classes(labels, is_scored, classes),
            "predicted_pixels": _pixels_of_classes(predictions, is_scored, classes),
            "correct_pixels": _pixels_of_classes(labels, is_correct, classes),
        }

    @property
    def evaluation_batch_size(self) -> int:
        """Examples per evaluation batch; fewer where the logits of all pixels would exceed `MAX_BATCH_LOGITS`."""
        _, height, width = image_shape(self.config)
        return max(1, min(EVALUATION_BATCH_SIZE, MAX_BATCH_LOGITS // (height * width * len(self.names))))

    @classmethod
    def dummy_inputs(
        cls, config: PreTrainedConfig, workload: Workload, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Returns random pixels."""
        return random_images(config, workload, generator)


def _on_pixels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns logits (examples, classes, rows, columns), interpolated to the pixels of the labels."""
    import torch.nn.functional as F

    return F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)


def _pixels_of_classes(ids: torch.Tensor, counted: torch.Tensor, classes: int) -> np.ndarray:
    """Returns how many of the counted pixels each class has, by example (examples, classes)."""
    import torch

    counts = [torch.bincount(own[mask], minlength=classes) for own, mask in zip(ids, counted, strict=True)]
    return torch.stack(counts).cpu().numpy()

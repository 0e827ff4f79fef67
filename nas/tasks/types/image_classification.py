"""Image classification: the labels of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nas.tasks.batches import Batch, Row, row_numbers
from nas.tasks.data import require_images
from nas.tasks.images import check_images, convert_image, decode_image, image_shape, undecoded
from nas.tasks.types.base import TaskInputs
from nas.tasks.types.classification import Classification, targets
from search_spaces import InputError
from search_spaces.errors import short_error

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
                "pixel_values": self._pixels(images, source),
                "labels": targets(rows[label], problem_type, classes),
                **row_numbers(rows),
            }

        return undecoded(examples, column).with_transform(transform)

    def collate(self, rows: list[Row]) -> Batch:
        """Stacks images of one size."""
        import torch

        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    @classmethod
    def dummy_inputs(
        cls, config: PreTrainedConfig, workload: Workload, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Returns random pixels."""
        import torch

        return {"pixel_values": torch.randn((workload.batch_size, *image_shape(config)), generator=generator)}

    def _pixels(self, images: list[Any], source: str) -> list[torch.Tensor]:
        """Returns the pixels of images; InputError if the image processor gives another shape than the model's."""
        shape = image_shape(self.config)
        mode = "L" if shape[0] == 1 else "RGB"
        try:
            pixels = list(
                self.processor([convert_image(image, mode, source) for image in images], return_tensors="pt")[
                    "pixel_values"
                ]
            )
            problem = str(next((tuple(p.shape) for p in pixels if p.shape != shape), ""))
        except InputError:
            raise
        except ValueError as error:
            problem = short_error(error)
        if problem:
            raise InputError(
                f"the image processor of `{self.model}` must return images of the model's shape (channels, height, "
                f"width) {shape}, but got {problem}; set `size`, `image_mean` and `image_std` in its "
                "preprocessor_config.json."
            )
        return pixels

"""Zero-shot image classification: the class whose text a model with two towers finds nearest to an image.

The text of a class is made from its name, as `pipeline("zero-shot-image-classification")` does; the texts of all
classes are read with every batch.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nas.tasks.batches import Batch, Row, model_inputs
from nas.tasks.types.base import TaskInputs
from nas.tasks.types.image_classification import ImageClassification
from nas.tasks.types.texts_of_images import parts_of, random_images_and_texts, text_inputs
from search_spaces import InputError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedConfig

    from predictors import Workload


class ZeroShotImageClassification(ImageClassification):
    """Images and the texts of all classes are preprocessed by the model's own processor."""

    processor_class = "AutoProcessor"

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        images, self.tokenizer = parts_of(inputs)
        super().__init__(replace(inputs, processor=images, head_names=None), train, test)
        if self.problem_type != "single_label_classification":
            raise InputError(
                f"{inputs.settings.type} must have one class for each image, but `{self.label}` holds labels for "
                f"{self.problem_type}; name another column in `task.label`."
            )

    @cached_property
    def texts(self) -> dict[str, torch.Tensor]:
        """The tokens of the texts of all classes (classes, tokens)."""
        template = self.task.hypothesis_template
        return text_inputs(self.tokenizer, self.config, [template.format(name) for name in self.names])

    def collate(self, rows: list[Row]) -> Batch:
        """Stacks images of one size, and adds the texts of all classes."""
        return {**super().collate(rows), **self.texts}

    def logits(self, outputs: Any) -> torch.Tensor:
        """Similarities of the images to the texts of all classes."""
        return outputs.logits_per_image

    def forward(self, model: Any, batch: Batch, **kwargs: Any) -> Any:
        """Runs a model; its loss is the cross-entropy of the softmax over the texts of all classes."""
        import torch.nn.functional as F

        outputs = model(**model_inputs(batch), **kwargs)
        outputs.loss = F.cross_entropy(outputs.logits_per_image, batch["labels"])
        return outputs

    def configure(self, config: PreTrainedConfig) -> None:
        """Leaves the config as it is: the model knows no classes."""

    @classmethod
    def dummy_inputs(
        cls, config: PreTrainedConfig, workload: Workload, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Returns random pixels and a few short random texts."""
        return random_images_and_texts(config, workload, generator)

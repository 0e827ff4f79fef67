"""Object detection: the boxes and the classes of objects in an image."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from nas.tasks import average_precision
from nas.tasks.average_precision import matches, require_pycocotools
from nas.tasks.batches import IGNORE_INDEX, Batch, Row, model_inputs, row_numbers
from nas.tasks.boxes import Objects, object_fields, objects_of, relative_box, require_boxes
from nas.tasks.data import require_images
from nas.tasks.images import check_images, decode_image, image_inputs, stacked_images, undecoded
from nas.tasks.metrics import Metric, mean_of
from nas.tasks.types.base import TaskInputs, TaskType
from nas.tasks.types.image_classification import ImageClassification
from search_spaces import InputError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedModel

    from nas.tasks.losses import LogitsAndLabels, PredictionsAndLabels
    from predictors import Workload

BOX_WEIGHT = 5.0
"""Of the difference of boxes in a distillation, as in the loss of DETR (Carion et al. 2020, arXiv 2005.12872)."""


LAST = ("logits", "pred_boxes")
"""Outputs of the last layer."""
BEFORE_LAST = {
    "intermediate_logits": "outputs_class",
    "intermediate_reference_points": "outputs_coord",
    "enc_topk_logits": "enc_topk_logits",
    "enc_topk_bboxes": "enc_topk_bboxes",
}
"""Outputs of all layers of a decoder, and of its encoder -> what the loss calls them."""


class ObjectDetection(TaskType):
    """A detector gives each of its queries a class, or none, and a box; it learns by its own loss.

    Boxes in a batch are relative to the image: centre, width and height. Labels are (examples, objects, 5): the class,
    `IGNORE_INDEX` where an image has fewer objects than another, then the box.
    """

    processor_class = "AutoImageProcessor"
    reads_coco: ClassVar[bool] = True
    metrics: Mapping[str, Metric] = {**average_precision.METRICS, "loss": mean_of("loss")}

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        require_pycocotools()
        self.model, self.objects = inputs.model, self.label_column or "objects"
        found = self._named(train, self.task.train)
        self.names = inputs.head_names or sorted({str(name) for _, classes in found for name in classes})
        for examples, source in ((train, self.task.train), (test, self.task.test)):
            self._require_known(self._named(examples, source), source)

    def _named(self, examples: Dataset, source: str) -> list[Objects]:
        """The objects of each row, with the names of their classes where the data has names."""
        boxes, classes, names = object_fields(examples, self.objects, source)
        rows = [objects_of(stored, boxes, classes) for stored in examples[self.objects]]
        require_boxes(rows, source)
        return [(found, [names[k] for k in ids] if names else [str(k) for k in ids]) for found, ids in rows]

    def _require_known(self, rows: Sequence[Objects], source: str) -> None:
        unknown = sorted({name for _, classes in rows for name in classes} - {*self.names})
        if unknown:
            raise InputError(
                f"every class of `{source}` must be one of {', '.join(self.names[:8])}, but got `{unknown[0]}`; "
                "correct it, or take a model without a trained head."
            )

    def input_columns(self, examples: Dataset) -> tuple[str, ...]:
        """The image."""
        return (self.task.image,)

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Computes pixels and relative boxes when a row is read."""
        require_images(examples, self.task.image, source)
        check_images(examples, self.task.image, source)
        boxes, classes, names = object_fields(examples, self.objects, source)
        column, known = self.task.image, self.names

        def labels(stored: Any, width: int, height: int) -> list[list[float]]:
            pairs = zip(*objects_of(stored, boxes, classes), strict=True)
            ids = [(box, known.index(names[kind] if names else str(kind))) for box, kind in pairs]
            return [[float(number), *relative_box(box, width, height)] for box, number in ids]

        def transform(rows: dict[str, Any]) -> dict[str, Any]:
            images = [decode_image(stored, source) for stored in rows[column]]
            objects = zip(rows[self.objects], images, strict=True)
            return {
                **image_inputs(images, self.processor, self.config, self.model, source),
                "labels": [labels(stored, *image.size) for stored, image in objects],
                **row_numbers(rows),
            }

        return undecoded(examples, column).with_transform(transform)

    def collate(self, rows: list[Row]) -> Batch:
        """Stacks images of one size, and pads their objects."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        objects = [torch.tensor(row["labels"], dtype=torch.float32).view(-1, 5) for row in rows]
        return {
            **stacked_images(rows),
            "labels": pad_sequence(objects, batch_first=True, padding_value=IGNORE_INDEX),
        }

    def forward(self, model: Any, batch: Batch, **kwargs: Any) -> Any:
        """Runs a model on a batch; its loss matches queries with objects, in float32 whatever the model's dtype."""
        outputs = model(**model_inputs(batch), **kwargs)
        found = {name: outputs[name].float() for name in (*LAST, *BEFORE_LAST) if name in outputs}
        outputs.loss = self._loss(found, _targets(batch["labels"]))
        return outputs

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Returns the logits (examples, queries, classes + 1) and the boxes (examples, queries, 4)."""
        labels = batch.get("labels", outputs.logits)
        return [(outputs.logits, labels), (outputs.pred_boxes, labels)]

    def divergence(
        self, student: Sequence[LogitsAndLabels], teacher: Sequence[PredictionsAndLabels], temperature: float
    ) -> torch.Tensor:
        """KL divergence of the classes of each query, and the difference of boxes where the teacher sees an object.

        A student with fewer queries has the first ones of its teacher; where queries are not learned, but the best
        places of an image, each query of a student has the one of its teacher that it resembles most.
        """
        import torch
        import torch.nn.functional as F

        (logits, _), (boxes, _) = ((each.float(), labels) for each, labels in student)
        true, true_boxes = (cast("torch.Tensor", each).float() for each, _ in teacher)
        if self._has_no_object(logits):
            true, true_boxes = (each[:, : logits.shape[1]] for each in (true, true_boxes))
            certain = 1 - true.softmax(-1)[..., -1]
        else:
            order = _matched(logits, boxes, true, true_boxes)
            true, true_boxes = (each.take_along_dim(order[..., None], 1) for each in (true, true_boxes))
            certain = true.sigmoid().amax(-1)
            logits, true = (torch.stack([each, torch.zeros_like(each)], -1) for each in (logits, true))
        target, scores = (F.log_softmax(each / temperature, -1) for each in (true, logits))
        divergences = F.kl_div(scores, target, reduction="none", log_target=True).flatten(2).sum(-1)
        classes = divergences.mean() * temperature**2
        difference = ((boxes - true_boxes).abs().sum(-1) * certain).sum() / certain.sum().clamp(min=1.0)
        return classes + BOX_WEIGHT * difference

    def example_stats(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns the loss of each image, and which detections match its objects."""
        outputs = model(**model_inputs(batch))
        logits, boxes = outputs.logits.float(), outputs.pred_boxes.float()
        chances = logits.softmax(-1)[..., :-1] if self._has_no_object(logits) else logits.sigmoid()
        scores, classes = chances.max(-1)
        detections = [
            np.column_stack([kind.cpu(), _corners(box), score.cpu()])
            for kind, box, score in zip(classes, boxes, scores, strict=True)
        ]
        true = [target.cpu() for target in batch["labels"]]
        objects = [each[each[:, 0] != IGNORE_INDEX] for each in true]
        return {
            "loss": self._losses(logits, boxes, batch),
            "matches": matches(
                [np.column_stack([each[:, 0], _corners(each[:, 1:])]) for each in objects], detections, len(self.names)
            ),
        }

    def _losses(self, logits: torch.Tensor, boxes: torch.Tensor, batch: Batch) -> np.ndarray:
        """The loss of each image (images,)."""
        parts = zip(logits.split(1), boxes.split(1), _targets(batch["labels"]), strict=True)
        return np.array([float(self._loss(dict(zip(LAST, part, strict=True)), [target])) for *part, target in parts])

    def _has_no_object(self, logits: torch.Tensor) -> bool:
        """Whether a detector gives each query a chance of no object, beside the classes."""
        return logits.shape[-1] > len(self.names)

    def _loss(self, found: Mapping[str, torch.Tensor], targets: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """The loss of images together, as the model has it; PyTorch compares boxes on a CPU in 32 bits only.

        Args:
            found: Output -> tensor: `LAST`, and where a decoder refines boxes layer by layer, `BEFORE_LAST`. With
                ``auxiliary_loss`` in the config, what the layers before the last one find is part of the loss then;
                queries of noise are not.
            targets: Classes and boxes of the objects of each image.
        """
        from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
        from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

        config, (logits, boxes) = copy.copy(self.config), (found[name] for name in LAST)
        config.num_labels = len(self.names)
        config.auxiliary_loss = config.auxiliary_loss and len(found) > len(LAST)
        loss_of = ForObjectDetectionLoss if self._has_no_object(logits) else RTDetrForObjectDetectionLoss
        others = {argument: found[name] for name, argument in BEFORE_LAST.items() if name in found}
        loss: torch.Tensor = loss_of(logits, targets, logits.device, boxes, config, **others)[0]
        return loss

    @classmethod
    def dummy_inputs(
        cls, config: PreTrainedConfig, workload: Workload, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Returns random pixels."""
        return ImageClassification.dummy_inputs(config, workload, generator)


def _matched(logits: torch.Tensor, boxes: torch.Tensor, true: torch.Tensor, true_boxes: torch.Tensor) -> torch.Tensor:
    """For each query of a student, the index of another one of its teacher (examples, queries)."""
    import torch
    from scipy.optimize import linear_sum_assignment

    with torch.no_grad():
        costs = BOX_WEIGHT * torch.cdist(boxes, true_boxes, 1) + torch.cdist(logits.sigmoid(), true.sigmoid(), 1)
    pairs = [linear_sum_assignment(each)[1] for each in costs.cpu().numpy()]
    return torch.as_tensor(np.stack(pairs), device=logits.device)


def _targets(labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Padded labels as detectors take them: the classes and the boxes of each image."""
    objects = [each[each[:, 0] != IGNORE_INDEX] for each in labels]
    return [{"class_labels": each[:, 0].long(), "boxes": each[:, 1:]} for each in objects]


def _corners(boxes: torch.Tensor) -> np.ndarray:
    """Left, top, width and height of boxes (boxes, 4) given by their centre, width and height."""
    numbers = boxes.double().cpu().numpy()
    return np.concatenate([numbers[:, :2] - numbers[:, 2:] / 2, numbers[:, 2:]], 1)

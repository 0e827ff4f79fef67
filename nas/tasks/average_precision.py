"""Mean average precision of detections, computed by pycocotools as COCO defines it.

Which detections match which objects is found image by image; a metric pools what was found in some images, so that
resamples of them cost little.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from nas.tasks.metrics import ExampleStats, Metric, object_array
from search_spaces import InputError

MOST_DETECTIONS = 100
"""Detections of an image that count, the most certain ones."""
ANY_AREA = [0.0, 1e10]


def require_pycocotools() -> None:
    """Raises InputError if pycocotools is not installed."""
    if find_spec("pycocotools") is None:
        raise InputError("object detection needs the package `pycocotools`: pip install pycocotools.")


def matches(objects: Sequence[np.ndarray], detections: Sequence[np.ndarray], n_classes: int) -> np.ndarray:
    """What pycocotools says of each image and class, for `average_precision`.

    Args:
        objects: Of each image the class, and the left, top, width and height of each object (objects, 5).
        detections: Of each image the same of each detection, and its score (detections, 6).
        n_classes: Number of classes.

    Returns:
        For each image a list with an entry for each class (images,).
    """
    evaluator = _evaluator(len(objects), n_classes)
    for image, (true, found) in enumerate(zip(objects, detections, strict=True)):
        for number, row in enumerate(true, 1):
            box = {"id": number, "bbox": row[1:].tolist(), "area": float(row[3] * row[4]), "iscrowd": 0, "ignore": 0}
            evaluator._gts[image, int(row[0])].append(box)
        for number, row in enumerate(found, 1):
            box = {"id": number, "bbox": row[1:5].tolist(), "area": float(row[3] * row[4]), "score": float(row[5])}
            evaluator._dts[image, int(row[0])].append(box)
    pairs = [(image, number) for image in range(len(objects)) for number in range(n_classes)]
    evaluator.ious = {pair: evaluator.computeIoU(*pair) for pair in pairs}
    found_of = {pair: evaluator.evaluateImg(*pair, ANY_AREA, MOST_DETECTIONS) for pair in pairs}
    return object_array([[found_of[image, number] for number in range(n_classes)] for image in range(len(objects))])


def average_precision(stats: ExampleStats, thresholds: slice = slice(None)) -> float:
    """Mean over classes and thresholds of the overlap, 0.5 to 0.95, of the average precision; 0 without objects."""
    images = stats["matches"]
    evaluator = _evaluator(len(images), len(images[0]))
    evaluator._paramsEval = copy.deepcopy(evaluator.params)
    evaluator.evalImgs = [image[number] for number in range(len(images[0])) for image in images]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.accumulate()
    precision = evaluator.eval["precision"][thresholds]
    return float(precision[precision > -1].mean()) if (precision > -1).any() else 0.0


def _evaluator(n_images: int, n_classes: int) -> Any:
    from pycocotools.cocoeval import COCOeval

    evaluator = COCOeval(iouType="bbox")
    evaluator.params.imgIds, evaluator.params.catIds = list(range(n_images)), list(range(n_classes))
    evaluator.params.areaRng, evaluator.params.areaRngLbl = [ANY_AREA], ["all"]
    evaluator.params.maxDets = [MOST_DETECTIONS]
    return evaluator


METRICS: dict[str, Metric] = {
    "map": average_precision,
    "map50": partial(average_precision, thresholds=slice(1)),
}

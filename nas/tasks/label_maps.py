"""Label maps: images of which each pixel holds the id of a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.tasks.batches import IGNORE_INDEX
from nas.tasks.images import CHECKED_IMAGES, decode_image, undecoded
from search_spaces import InputError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

MAP_MODES = ("1", "L", "P", "I", "I;16")
"""Pillow's modes of one channel of whole numbers; in a palette, the numbers are the ids."""
REDUCED_BACKGROUND = 255
"""What image processors that lower all ids by one make of 0."""


def image_columns(dataset: Dataset) -> list[str]:
    """The columns of images."""
    from datasets import Image

    return [name for name, feature in dataset.features.items() if isinstance(feature, Image)]


def map_column(dataset: Dataset, requested: str | None, image: str, source: str) -> str:
    """The column of label maps: that of the recipe, else the only other column of images.

    Raises:
        InputError: If there is none, or several.
    """
    others = [name for name in image_columns(dataset) if name != image]
    if requested is None and len(others) != 1:
        raise InputError(
            f"`task.label` must name the column of label maps, images whose pixels are ids of classes, but `{source}` "
            f"has {others or dataset.column_names} beside `{image}`; name one."
        )
    return requested or others[0]


def decode_map(stored: Mapping[str, Any], source: str, row: int | None = None) -> np.ndarray:
    """Decodes a label map as stored: ids of classes (height, width).

    Raises:
        InputError: If it cannot be decoded, or has several channels.
    """
    image = decode_image(stored, source, row)
    if image.mode not in MAP_MODES:
        raise InputError(
            f"label maps must have one channel of whole numbers, the ids of classes, but one of `{source}` is an "
            f"image of mode {image.mode}; convert it to grey levels."
        )
    return np.asarray(image).astype(np.int32)


def number_of_classes(
    dataset: Dataset, column: str, ignored: int, source: str, most: int | None, *, reduces: bool
) -> int:
    """The largest id of a class in the label maps, plus one; of a large data set, in some of them.

    Args:
        dataset: The examples.
        column: Of the label maps.
        ignored: The id of pixels without a label.
        source: Name of the data in errors.
        most: Number of classes that the model knows; None if it takes them from the data.
        reduces: Whether the image processor lowers all ids by one and ignores 0.

    Raises:
        InputError: If an id is negative, or none of the model's classes.
    """
    maps, largest = undecoded(dataset, column), -1
    for row in np.unique(np.linspace(0, len(maps) - 1, min(len(maps), CHECKED_IMAGES)).astype(int)).tolist():
        ids = np.unique(decode_map(maps[row][column], source, row))
        _require_whole_ids(ids[ids != ignored], ignored, column, f"row {row} of `{source}`")
        ids = ids - int(reduces)
        ids = ids[(ids >= 0) & (ids != ignored - int(reduces)) & (ids != ignored)]
        largest = max(largest, int(ids.max(initial=-1)))
        if most is not None and largest >= most:
            raise InputError(
                f"label maps must hold ids below the model's {most} classes, or {ignored} for no class, but "
                f"`{column}` in row {row} of `{source}` has {largest}; correct it."
            )
    if largest < 0:
        raise InputError(
            f"`{column}` of `{source}` must label some pixels, but all are {ignored}; name another column."
        )
    return largest + 1


def _require_whole_ids(ids: np.ndarray, ignored: int, column: str, where: str) -> None:
    """Raises InputError if an id of a class is negative."""
    if ids.min(initial=0) < 0:
        raise InputError(
            f"label maps must hold ids of classes from 0 on, or {ignored} for no class, but `{column}` in {where} has "
            f"{int(ids.min())}; correct it."
        )


def scored_labels(
    ids: torch.Tensor, ignored: int, classes: int, column: str, source: str, *, reduces: bool
) -> torch.Tensor:
    """Labels as losses take them, with `IGNORE_INDEX` for pixels without a label.

    Args:
        ids: Of classes, as the image processor returns them (height, width).
        ignored: The id of pixels without a label.
        classes: Number of classes.
        column: Of the label maps.
        source: Name of the data in errors.
        reduces: Whether the image processor has lowered all ids by one.

    Raises:
        InputError: If an id is none of the classes; `number_of_classes` has not read all maps of a large data set.
    """
    _require_whole_ids(ids[ids != ignored].numpy(), ignored, column, f"a map of `{source}`")
    labels = ids.long().masked_fill(ids == ignored, IGNORE_INDEX)
    if reduces:
        lowered = (labels == ignored - 1) | (labels == REDUCED_BACKGROUND)
        labels = labels.masked_fill(lowered & (labels >= classes), IGNORE_INDEX)
    wrong = labels[labels >= classes]
    if len(wrong):
        raise InputError(
            f"label maps must hold ids of the {classes} classes, {int(reduces)} to {classes - 1 + int(reduces)}, or "
            f"{ignored} for no class, but a map in `{column}` of `{source}` has {int(wrong[0]) + int(reduces)}; "
            "correct it, or leave its row out."
        )
    return labels

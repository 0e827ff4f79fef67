"""Objects in images: a column of boxes and classes becomes the labels that a detector learns from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces import InputError
from search_spaces.errors import DAMAGE, described

if TYPE_CHECKING:
    from datasets import Dataset

BOXES = ("bbox", "boxes", "bboxes")
"""Names of the boxes of a row: left, top, width and height in pixels, as COCO has them."""
CLASSES = ("category", "categories", "category_id", "label", "labels")
"""Names of their classes: names or numbers."""
WAY_OUT = "as `objects: {bbox: [[left, top, width, height], ...], category: [...]}`"

Objects = tuple[list[Sequence[float]], list[Any]]
"""Boxes (left, top, width, height) in pixels, and their classes."""


def object_fields(examples: Dataset, column: str, source: str) -> tuple[str, str, list[str] | None]:
    """The names of boxes and classes in a column of objects, and the names of the classes if the data has them.

    Raises:
        InputError: If it holds no objects.
    """
    feature = examples.features.get(column)
    fields = feature if isinstance(feature, dict) else getattr(feature, "feature", None)
    fields = fields if isinstance(fields, dict) else {}
    boxes, classes = (next((name for name in names if name in fields), None) for names in (BOXES, CLASSES))
    if boxes is None or classes is None:
        raise InputError(
            f"`task.label` must name a column of objects, {WAY_OUT}, but `{column}` of `{source}` is {feature}."
        )
    of_class = getattr(fields[classes], "feature", fields[classes])
    return boxes, classes, getattr(of_class, "names", None)


def objects_of(stored: Any, boxes: str, classes: str) -> Objects:
    """The objects of a row: a mapping of lists, or a list of mappings."""
    if isinstance(stored, Mapping):
        return list(stored[boxes] or ()), list(stored[classes] or ())
    return [each[boxes] for each in stored or ()], [each[classes] for each in stored or ()]


def require_boxes(rows: Sequence[Objects], source: str) -> None:
    """Raises InputError if a box is not four numbers with a width and a height, or a class is missing or negative."""
    for row, (boxes, classes) in enumerate(rows):
        wrong = [box for box in boxes if len(box) != 4 or not all(map(math.isfinite, box)) or min(box[2:]) <= 0]
        negative = [number for number in classes if isinstance(number, int) and number < 0]
        if negative:
            raise InputError(
                f"ids of classes must be 0 or more, but row {row} of `{source}` has {negative[0]}; correct it."
            )
        if wrong or len(boxes) != len(classes) or None in classes:
            what = f"the box {wrong[0]}" if wrong else f"{len(boxes)} boxes and {len(classes)} classes"
            raise InputError(
                f"every object must have a class and a box of left, top, width and height in pixels, but row {row} of "
                f"`{source}` has {what}; correct or remove it."
            )


def relative_box(box: Sequence[float], width: int, height: int) -> list[float]:
    """Centre, width and height of the part of a box that is in its image, relative to the image."""
    left, top = (min(max(value, 0.0), side) / side for value, side in zip(box[:2], (width, height), strict=True))
    right, bottom = (
        min(max(start + size, 0.0), side) / side
        for start, size, side in zip(box[:2], box[2:], (width, height), strict=True)
    )
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def load_coco(file: Path) -> Dataset:
    """Reads annotations in the format of COCO; images are beside the file, or in a folder ``images`` there.

    Crowds are left out.

    Raises:
        InputError: If it is no such file, or an image is missing.
    """
    from datasets import ClassLabel, Dataset, Features, Image, List, Value

    try:
        data = json.loads(file.read_bytes())
        names = {each["id"]: str(each["name"]) for each in data["categories"]}
        images: dict[Any, tuple[str, list[Any], list[str]]] = {
            each["id"]: (str(each["file_name"]), [], []) for each in data["images"]
        }
        for each in data["annotations"]:
            if not each.get("iscrowd"):
                images[each["image_id"]][1].append(each["bbox"])
                images[each["image_id"]][2].append(names[each["category_id"]])
    except (OSError, *DAMAGE) as error:
        raise InputError(
            "a JSON file of objects must have `images`, `annotations` and `categories` as COCO has them, but "
            f"`{file}` has not ({described(error)}); write it again."
        ) from None
    _require_distinct([*names.values()], file)
    objects = {"bbox": List(List(Value("float64"))), "category": List(ClassLabel(names=sorted(names.values())))}
    rows = [
        {"image": _image(file, name), "objects": {"bbox": boxes, "category": found}}
        for name, boxes, found in images.values()
    ]
    return Dataset.from_list(rows, features=Features({"image": Image(), "objects": objects}))


def _require_distinct(names: Sequence[str], file: Path) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(
            f"every category of `{file}` must have a name of its own, but several are `{repeated[0]}`; rename them, "
            "or give their annotations one `category_id`."
        )


def _image(file: Path, name: str) -> str:
    """The path of an image of a file of annotations."""
    places = (file.parent / name, file.parent / "images" / name)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise InputError(f"every image of `{file}` must be there, but `{places[0]}` is not; correct `file_name`.")
    return str(found)

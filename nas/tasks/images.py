"""Images of a data set: decodes them, names one that cannot be decoded, and sets the size that a model reads."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from predictors.measurement.image_tower import IMAGES
from search_spaces import InputError
from search_spaces.errors import short_error

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from PIL.Image import Image
    from transformers import PreTrainedConfig

    from predictors import Workload

CHECKED_IMAGES = 10_000
"""Images of a split that are decoded before training; of a larger one as many, evenly spaced."""
DEEP_MODES = ("I", "F")
"""First letters of Pillow's modes of more than eight bits."""
SIXTEEN_BITS = 65535
_AXES = {3: "(channels, height, width)", 2: "(patches, values)"}
_KEYS = {3: "`size`, `image_mean` and `image_std`", 2: "`max_num_patches` and `patch_size`"}
"""Dimensions of pixels -> what they are, and what sets them."""


def undecoded(examples: Dataset, column: str) -> Dataset:
    """The examples with a column of images as stored: a mapping of ``bytes`` and ``path``."""
    from datasets import Image

    return examples.cast_column(column, Image(decode=False))


def decode_image(stored: Mapping[str, Any], source: str, row: int | None = None) -> Image:
    """Decodes an image as stored.

    Args:
        stored: Its ``bytes`` or ``path``.
        source: Name of the data in errors.
        row: Its row, for images without a file of their own.

    Raises:
        InputError: If it is missing or cannot be decoded.
    """
    from datasets import Image

    try:
        image: Image = Image().decode_example(dict(stored))
        image.load()
    except Exception as error:
        path = (stored or {}).get("path")
        in_row = "an image" if row is None else f"the image in row {row}"
        name = f"the image `{_short_path(path, source)}`" if path else in_row
        raise InputError(
            f"{name} of `{source}` cannot be decoded ({short_error(error)}); replace or remove it."
        ) from None
    return image


def convert_image(image: Image, mode: str, source: str) -> Image:
    """Converts an image to eight bits a channel; 16 bits are scaled, not clipped.

    Args:
        image: Decoded.
        mode: ``RGB`` or ``L``.
        source: Name of the data in errors.

    Raises:
        InputError: If its values are neither of 8 nor of 16 bits.
    """
    from PIL import Image as images

    if "transparency" in image.info:
        image = image.convert("RGBA")
    if not image.mode.startswith(DEEP_MODES):
        return image.convert(mode)
    values = np.asarray(image, dtype=np.float64)
    if values.min() < 0 or values.max() > SIXTEEN_BITS or (image.mode == "F" and values.max() > 1):
        raise InputError(
            f"images of `{source}` must have values of 8 or 16 bits, or from 0 to 1, but one has {values.min():g} to "
            f"{values.max():g}; convert it."
        )
    scale = 255 if image.mode == "F" else 255 / SIXTEEN_BITS
    return images.fromarray(np.round(values * scale).astype(np.uint8)).convert(mode)


def check_images(examples: Dataset, column: str, source: str) -> None:
    """Raises InputError if an image cannot be decoded, with its file; see `CHECKED_IMAGES`."""
    stored = undecoded(examples, column)
    rows = np.unique(np.linspace(0, len(stored) - 1, min(len(stored), CHECKED_IMAGES)).astype(int))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(
            lambda row: decode_image(stored[row][column], source, _stored_row(stored, row)) and None, rows.tolist()
        ):
            pass


def image_shape(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Channels, height and width of a model's input images."""
    size = getattr(config, "vision_config", config).image_size
    height, width = (size, size) if isinstance(size, int) else size
    return _channels(config), height, width


def _channels(config: PreTrainedConfig) -> int:
    sizes = getattr(config, "vision_config", config)
    return int((sizes if hasattr(sizes, "num_channels") else sizes.backbone_config).num_channels)


def pixels_shape(config: PreTrainedConfig) -> tuple[int, ...]:
    """Shape of the pixels of one image: channels, height and width; or of patches already cut and their values."""
    sizes = getattr(config, "vision_config", config)
    if number := getattr(sizes, "num_patches", 0):
        return number, _channels(config) * sizes.patch_size**2
    return image_shape(config)


def image_inputs(
    images: list[Image], processor: Any, config: PreTrainedConfig, model: str, source: str
) -> dict[str, list[torch.Tensor]]:
    """What a model reads of images: `IMAGES` -> a tensor for each image.

    Args:
        images: Decoded.
        processor: The image processor.
        config: The model's config.
        model: Hub id or folder of the model, for errors.
        source: Name of the data in errors.

    Raises:
        InputError: If the image processor gives another shape than the model's.
    """
    found = _preprocessed(images, processor, config, model, source)
    return {name: found[name] for name in image_names(config)}


def image_names(config: PreTrainedConfig) -> tuple[str, ...]:
    """The names of a model's inputs of images."""
    return IMAGES if len(pixels_shape(config)) == 2 else IMAGES[:1]


def stacked_images(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The inputs of several images of one size (images, ...), from a mapping for each."""
    import torch

    return {name: torch.stack([row[name] for row in rows]) for name in IMAGES if name in rows[0]}


def pixels_and_maps_of(
    images: list[Image], maps: list[np.ndarray], processor: Any, config: PreTrainedConfig, model: str, source: str
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The pixels of images, and the ids of classes (height, width) that label them; see `image_inputs`."""
    found = _preprocessed(images, processor, config, model, source, segmentation_maps=maps)
    return found["pixel_values"], found["labels"]


def _preprocessed(
    images: list[Image], processor: Any, config: PreTrainedConfig, model: str, source: str, **others: Any
) -> dict[str, list[torch.Tensor]]:
    shape = pixels_shape(config)
    converted = [convert_image(image, "L" if _channels(config) == 1 else "RGB", source) for image in images]
    try:
        found = {name: list(each) for name, each in processor(converted, return_tensors="pt", **others).items()}
        problem = str(next((tuple(p.shape) for p in found["pixel_values"] if p.shape != shape), ""))
    except ValueError as error:
        problem = short_error(error)
    if problem:
        raise InputError(
            f"the image processor of `{model}` must return images of the model's shape {_AXES[len(shape)]} "
            f"{shape}, but got {problem}; set {_KEYS[len(shape)]} in its preprocessor_config.json."
        )
    return found


def random_images(config: PreTrainedConfig, workload: Workload, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random images as a model reads them; those that are cut into patches are square and fill all of them."""
    import torch

    batch, shape = workload.batch_size, pixels_shape(config)
    pixels = torch.randn((batch, *shape), generator=generator)
    side = math.isqrt(shape[0])
    others = torch.ones((batch, shape[0]), dtype=torch.int32), torch.full((batch, 2), side)
    return dict(zip(image_names(config), (pixels, *others), strict=False))


def processed_size(processor: Any) -> int | list[int]:
    """Height and width in pixels, or one number for both, of the images that an image processor returns."""
    name = "crop_size" if getattr(processor, "do_center_crop", False) else "size"
    lengths = dict(getattr(processor, name))
    height, width = (int(lengths.get(side) or lengths["shortest_edge"]) for side in ("height", "width"))
    return height if height == width else [height, width]


def with_image_size(config: PreTrainedConfig, side: int) -> PreTrainedConfig:
    """A copy of a model's config for images with a side of so many pixels."""
    resized = copy.deepcopy(config)
    sizes = getattr(resized, "vision_config", resized)
    sizes.image_size = side if isinstance(sizes.image_size, int) else [side, side]
    return resized


def resized_processor(processor: Any, share: float) -> Any:
    """A copy of an image processor, alone or beside a tokenizer, whose images are smaller by this share of a side."""
    resized = copy.deepcopy(processor)
    images = getattr(resized, "image_processor", resized)
    for name in ("size", "crop_size"):
        if lengths := getattr(images, name, None):
            smaller = {key: round(value * share) for key, value in dict(lengths).items()}
            setattr(images, name, type(lengths)(**smaller))
    images.do_resize = True
    return resized


def _stored_row(examples: Dataset, row: int) -> int:
    """The number of a row before it was shuffled; `datasets` has no public name for it."""
    order = examples._indices
    return row if order is None else order.column(0)[row].as_py()


def _short_path(path: str, source: str) -> str:
    """The path of a file below its source."""
    return str(Path(path).relative_to(source)) if Path(path).is_relative_to(source) else path

"""Toy images: a bright square and a dark one on noise, their maps of labels, and recipes over them."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import transformers
from PIL import Image
from toys import TOYS

from nas.recipe.schema import Recipe
from search_spaces import FAMILIES

SIDE = 32
UNLABELLED = 255
BRIGHT, DARK = 230, 20


def scene(seed: int) -> tuple[Image.Image, Image.Image]:
    """An image, and its map: 0 for noise, 1 and 2 for the squares, `UNLABELLED` in the first row."""
    rng = np.random.default_rng(seed)
    pixels, ids = rng.integers(90, 160, (SIDE, SIDE, 3)), np.zeros((SIDE, SIDE))
    for number, level in ((1, BRIGHT), (2, DARK)):
        (top, left), size = rng.integers(1, SIDE - 13, 2), rng.integers(8, 13)
        pixels[top : top + size, left : left + size], ids[top : top + size, left : left + size] = level, number
    ids[0] = UNLABELLED
    return tuple(Image.fromarray(each.astype(np.uint8)) for each in (pixels, ids))  # type: ignore[return-value]


def png(image: Image.Image) -> dict[str, Any]:
    """An image as `datasets` stores it."""
    buffer = BytesIO()
    image.save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def parquet(file: Path, rows: list[dict[str, Any]]) -> str:
    """A Parquet file with columns of images."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = {name: ImageFeature() if isinstance(value, dict) else Value("int64") for name, value in rows[0].items()}
    Dataset.from_pandas(pd.DataFrame(rows), Features(features)).to_parquet(str(file))
    return str(file)


def image_model(family: str, folder: Path, **config: Any) -> str:
    """A folder with the config of a toy and an image processor; no weights, so that a run trains it."""
    toy = transformers.AutoConfig.for_model(family, **{**TOYS[family].config, **config})
    toy.save_pretrained(folder)
    if FAMILIES[family].cuts_patches:
        patches = toy.vision_config
        transformers.Siglip2ImageProcessorPil(
            patch_size=patches.patch_size, max_num_patches=patches.num_patches
        ).save_pretrained(folder)
        return str(folder)
    side = {"height": toy.image_size, "width": toy.image_size}
    classes = {"segformer": transformers.SegformerImageProcessor, "beit": transformers.BeitImageProcessor}
    processor: Any = classes.get(family, transformers.ViTImageProcessor)
    processor(
        size=side, do_resize=True, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ).save_pretrained(folder)
    return str(folder)


QUICK = {
    "space": {"num_stage3_layers": [1, 2], "intermediate_size": [24, 96]},
    "profile": {"samples": 10, "precision": 0.5},
    "search": {"evaluations": 6},
    "finish": {"models": 0},
}
"""Sections of a recipe for a model of several stages that is searched in seconds."""


def recipe(
    folder: Path,
    family: str,
    task: str,
    rows: list[dict[str, Any]],
    config: dict[str, Any] | None = None,
    **sections: Any,
) -> Recipe:
    """A recipe over some rows, every third of which is held out, for a toy with some other fields in its config."""
    return Recipe.parse(
        {
            "model": image_model(family, folder / "model", **(config or {})),
            "task": {
                "type": task,
                "train": parquet(folder / "train.parquet", rows),
                "test": parquet(folder / "test.parquet", rows[::3]),
                "search_examples": 24,
            },
            **sections,
        }
    )

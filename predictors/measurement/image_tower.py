"""The image tower of a model with two towers: what runs for every image once the texts have been read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SHAPES = "spatial_shapes"
IMAGES = ("pixel_values", "pixel_attention_mask", SHAPES)
"""Inputs of an image tower: pixels, or patches with their mask (images, patches) and the rows and columns of each."""


def has_towers(model: Any) -> bool:
    """Whether a model has a tower for images and one for texts."""
    return hasattr(model, "get_image_features") and hasattr(model, "get_text_features")


def image_tower(model: Any, inputs: Mapping[str, torch.Tensor]) -> tuple[Any, Mapping[str, torch.Tensor]]:
    """Returns what runs for every image: the image tower with its projection, and its inputs; else what is given.

    Args:
        model: A Hugging Face model; its modules are shared.
        inputs: Of a forward pass.
    """
    if not has_towers(model) or IMAGES[0] not in inputs:
        return model, inputs
    tower = model.vision_model
    if hasattr(model, "visual_projection"):
        tower = _with_projection(model)
    return tower.eval(), {name: inputs[name] for name in IMAGES if name in inputs}


def _with_projection(model: Any) -> Any:
    """The stock class of an image tower with a projection, made of the modules of a model."""
    import torch
    import transformers

    name = type(model).__name__.removeprefix("Nas").removesuffix("Model")
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        tower = getattr(transformers, f"{name}VisionModelWithProjection")(model.config.vision_config)
    tower.vision_model, tower.visual_projection = model.vision_model, model.visual_projection
    return tower

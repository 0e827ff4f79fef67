"""Texts beside images: what models with an image tower and a text tower read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nas.tasks.images import random_images
from nas.tasks.types.base import TaskInputs, random_tokens
from search_spaces import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from predictors import Workload

DUMMY_TEXTS, DUMMY_LENGTH = 3, 8
SIGLIP_LENGTH = 64
"""Tokens to which SigLIP's texts are padded, as in its training."""


def parts_of(inputs: TaskInputs) -> tuple[Any, Any]:
    """The image processor and the tokenizer of a model.

    Raises:
        InputError: If it lacks one.
    """
    parts = [getattr(inputs.processor, name, None) for name in ("image_processor", "tokenizer")]
    if None in parts:
        raise InputError(
            f"`{inputs.model}` must have an image processor and a tokenizer for {inputs.settings.type}, but has a "
            f"{type(inputs.processor).__name__}; add their files."
        )
    return parts[0], parts[1]


def text_inputs(tokenizer: Any, config: PreTrainedConfig, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """The tokens of texts (texts, tokens), padded and truncated as in the pipeline of zero-shot classification."""
    longest = int(config.get_text_config().max_position_embeddings)
    is_siglip = "siglip" in config.model_type
    length = {"max_length": min(SIGLIP_LENGTH, longest) if is_siglip else longest, "truncation": True}
    padding = "max_length" if is_siglip else True
    return dict(tokenizer(list(texts), return_tensors="pt", padding=padding, **length))


def random_images_and_texts(
    config: PreTrainedConfig, workload: Workload, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Random pixels of a workload's shape, and a few short random texts."""
    import torch

    images = random_images(config, workload, generator)
    ids = random_tokens(config, replace(workload, batch_size=DUMMY_TEXTS, sequence_length=DUMMY_LENGTH), generator)
    return {**images, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

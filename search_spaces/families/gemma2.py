"""Gemma 2 (Gemma Team 2024, arXiv 2408.00118): norms before and after each block, embeddings times sqrt(hidden)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from search_spaces.families.llama import LLAMA, LLAMA_LAYERS
from search_spaces.tasks import DECODER_TASKS, without

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedConfig


def rescaled_embeddings(config: PreTrainedConfig, hidden_size: int) -> Mapping[str, tuple[float, float]]:
    """Factors that keep the scale of the embeddings, which a stock model computes from its own hidden size.

    The embedding rows are multiplied by the ratio of the two scales. So is every head, because a head may share those
    rows; the last norm, which multiplies by 1 + weight, is divided by it.
    """
    factor = math.sqrt(config.hidden_size / hidden_size)
    rows = dict.fromkeys(("embed_tokens.weight", "lm_head.weight", "score.weight"), (factor, 0.0))
    return {**rows, "norm.weight": (1 / factor, 1.0)}


GEMMA2 = replace(
    LLAMA,
    model_type="gemma2",
    tasks=without(DECODER_TASKS, "question-answering"),
    stacks=(
        replace(
            LLAMA_LAYERS,
            modules={
                **LLAMA_LAYERS.modules,
                "pre_feedforward_layernorm": ("hidden",),
                "post_feedforward_layernorm": ("hidden",),
            },
            skips={
                "attention": {**LLAMA_LAYERS.skips["attention"], "post_attention_layernorm": "identity"},
                "mlp": {
                    "pre_feedforward_layernorm": "identity",
                    "mlp": "zeros",
                    "post_feedforward_layernorm": "identity",
                },
            },
            attention_module="",  # scores are capped
        ),
    ),
    per_layer_fields=("layer_types",),
    rescale_constants=rescaled_embeddings,
)

"""Proportions: roughly how a parent's weights and products divide between its parts, from its config only.

`predictors.costs` counts exactly; these decide which choices are proposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search_spaces.layout import Layout


def linear_weights(layout: Layout) -> int:
    """Weights in the linear layers of all layers: four matrices of attention, two of the feed-forward block."""
    per_stack = zip(layout.depths, layout.parent_values, strict=True)
    return sum(depth * _layer_weights(layout, values) for depth, values in per_stack)


def embedding_share(layout: Layout) -> float:
    """Share of the weights that is in the table of token embeddings."""
    table = getattr(layout.sizes, "vocab_size", 0) * layout.parent.hidden_size
    return float(table / (table + linear_weights(layout)))


def attention_score_share(layout: Layout, tokens: int) -> float:
    """Share of a layer's multiply-accumulates that is in attention scores and their weighted sum."""
    values = layout.parent_values[0]
    scores = 2 * tokens * values["num_attention_heads"] * layout.head_dim
    return scores / (scores + _layer_weights(layout, values))


def _layer_weights(layout: Layout, values: Mapping[str, int]) -> int:
    """Weights of the linear layers of one layer."""
    attention, ffn = values["num_attention_heads"] * layout.head_dim, values["intermediate_size"]
    return values["hidden_size"] * (4 * attention + 2 * ffn)

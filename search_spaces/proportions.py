"""Proportions: roughly how a parent's weights and products divide between its parts, from its config only.

`predictors.costs` counts exactly; these decide which choices are proposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search_spaces.layout import Layout

LARGE_TABLE = 0.2
"""Share of the weights in the table of token embeddings from which making it smaller is proposed."""


def linear_weights(layout: Layout) -> int:
    """Weights in the linear layers of all layers: four matrices of attention, two of the feed-forward block."""
    per_stack = zip(layout.depths, layout.full_sizes, strict=True)
    return sum(depth * _layer_weights(layout, sizes) for depth, sizes in per_stack)


def embedding_share(layout: Layout) -> float:
    """Share of the weights that is in the table of token embeddings."""
    table = getattr(layout.sizes, "vocab_size", 0) * layout.full_sizes[0]["hidden"]
    return float(table / (table + linear_weights(layout)))


def attention_score_share(layout: Layout, tokens: int) -> float:
    """Share of a layer's multiply-accumulates that is in attention scores and their weighted sum."""
    sizes = layout.full_sizes[0]
    scores = 2 * tokens * sizes["heads"] * layout.head_dim
    return scores / (scores + _layer_weights(layout, sizes))


def _layer_weights(layout: Layout, sizes: Mapping[str, int]) -> int:
    """Weights of the linear layers of one layer."""
    attention, ffn = sizes["heads"] * layout.head_dim, sizes["ffn"]
    return sizes["hidden"] * (4 * attention + 2 * ffn)

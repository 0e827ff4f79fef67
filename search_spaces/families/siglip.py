"""SigLIP's vision tower (Zhai et al. 2023, arXiv 2303.15343): CLIP's layers over patches alone, and a pooling head.

An image classifier runs that head and does not use it, so the head keeps its size and with it the residual stream.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from search_spaces.families.clip import CLIP

if TYPE_CHECKING:
    from search_spaces.layout import Layout


def pooling_macs(layout: Layout, tokens: int) -> int:
    """One query over all tokens: its projection, keys and values, scores and their weighted sum."""
    hidden = layout.parent.hidden_size
    if not layout.sizes.vision_use_head:
        return 0
    return (1 + 2 * tokens) * hidden**2 + 2 * tokens * hidden


SIGLIP = replace(
    CLIP,
    model_type="siglip",
    positions={
        **CLIP.positions,
        "vision_model.head.attention.out_proj": "once",
        "vision_model.head.mlp.fc1": "once",
        "vision_model.head.mlp.fc2": "once",
    },
    fixed_hidden="its pooling head is an `nn.MultiheadAttention` over all of it",
    special_tokens=0,
    outer_macs=pooling_macs,
)

"""SigLIP (Zhai et al. 2023, arXiv 2303.15343) and SigLIP 2 of one image size: CLIP's towers, without a class token.

An image classifier averages the patches. A whole model pools them by attention, with as many heads and neurons as the
config says for the layers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from search_spaces.families.clip import IMAGE_TOWER
from search_spaces.families.clip import TOWERS as CLIP_TOWERS

if TYPE_CHECKING:
    from search_spaces.layout import Layout
    from search_spaces.subnet import SubnetConfig

HEAD = "vision_model.head"


def pools_as_the_parent(layout: Layout, subnet: SubnetConfig) -> bool:
    """Whether the image layers have the parent's heads and neurons, as a stock config gives the pooling the same."""
    names, images = ("num_attention_heads", "intermediate_size"), layout.kept_positions(subnet)[0]
    return all(getattr(subnet, name)[k] == getattr(layout.parent, name)[0] for name in names for k in images)


def pooling_macs(layout: Layout, tokens: int) -> int:
    """Multiply-accumulates of the pooling's attention of one query: its projections, scores and weighted sum."""
    hidden = layout.parent.hidden_size
    return hidden * hidden * (2 * tokens + 1) + 2 * tokens * hidden


TOWERS = replace(
    CLIP_TOWERS,
    model_type="siglip",
    outside_layers={
        **{path: axes for path, axes in CLIP_TOWERS.outside_layers.items() if not path.endswith("_projection")},
        "text_model.head": (None, "text_hidden"),
    },
    runs_on={
        "vision_model.embeddings.patch_embedding": "patch",
        f"{HEAD}.attention.out_proj": "once",
        f"{HEAD}.mlp.fc1": "once",
        f"{HEAD}.mlp.fc2": "once",
        "text_model.head": "text",
    },
    required_values={"vision_use_head": True},
    fixed_reasons={"hidden_size": "the vector of an image has the channels of its residual stream"},
    has_stock_config=pools_as_the_parent,
    extra_outside_macs=pooling_macs,
    special_tokens=0,
)

SIGLIP = replace(
    IMAGE_TOWER,
    model_type="siglip",
    unused_modules={HEAD: ("use_head", "vision_use_head")},
    special_tokens=0,
    of_task=dict.fromkeys(TOWERS.tasks, TOWERS),
)

"""DINOv3 (Siméoni et al. 2025, arXiv 2508.10104): DINOv2's layers with rotary positions, and register tokens.

Stock transformers have no head for it: it makes features.
"""

from dataclasses import replace

from search_spaces.families.dinov2 import DINOV2

DINOV3 = replace(
    DINOV2,
    model_type="dinov3_vit",
    tasks=("image-feature-extraction",),
    stacks=(replace(DINOV2.stacks[0], layers="layer", attributes={"attention": {"num_heads": "heads"}}),),
    outside_layers={
        "embeddings.cls_token": (None, None, "hidden"),
        "embeddings.mask_token": (None, None, "hidden"),
        "embeddings.register_tokens": (None, None, "hidden"),
        "embeddings.patch_embeddings": ("hidden",),
        "norm": ("hidden",),
    },
    runs_on={"embeddings.patch_embeddings": "patch"},
    head_dim_in_config=False,
    config_names={},
    ffn_from_ratio=None,
)

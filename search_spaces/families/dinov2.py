"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193): ViT with layer scales, and a gated FFN in its largest size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from search_spaces.families.vit import VIT
from search_spaces.family import Stack

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def ffn_from_ratio(config: PreTrainedConfig, hidden: int, ratio: int) -> int:
    """Neurons of a feed-forward block: a gated one has two thirds, rounded up to a multiple of 8."""
    sizes: Any = config
    return -(-int(hidden * ratio * 2 / 3) // 8) * 8 if sizes.use_swiglu_ffn else hidden * ratio


DINOV2 = replace(
    VIT,
    model_type="dinov2",
    stacks=(
        Stack(
            layers="encoder.layer",
            attention_module="attention",
            modules={
                "norm1": ("hidden",),
                "attention.q_proj": ("heads", "hidden"),
                "attention.k_proj": ("heads", "hidden"),
                "attention.v_proj": ("heads", "hidden"),
                "attention.o_proj": ("hidden", "heads"),
                "layer_scale1.lambda1": ("hidden",),
                "norm2": ("hidden",),
                "mlp.fc1": ("ffn", "hidden"),
                "mlp.fc2": ("hidden", "ffn"),
                "mlp.gate_proj": ("ffn", "hidden"),
                "mlp.up_proj": ("ffn", "hidden"),
                "mlp.down_proj": ("hidden", "ffn"),
                "layer_scale2.lambda1": ("hidden",),
            },
            attributes={"attention": {"num_attention_heads": "heads"}},
            skips={
                "attention": {"norm1": "identity", "attention": "zeros, None", "layer_scale1": "identity"},
                "mlp": {"norm2": "identity", "mlp": "zeros", "layer_scale2": "identity"},
            },
        ),
    ),
    outside_layers={
        "embeddings.cls_token": (None, None, "hidden"),
        "embeddings.mask_token": (None, "hidden"),
        "embeddings.position_embeddings": (None, "positions", "hidden"),
        "patch_embeddings.projection": ("hidden",),
        "layernorm": ("hidden",),
        "classifier": (None, ("hidden", "hidden")),
    },
    config_names={"intermediate_size": ("mlp_ratio",)},
    ffn_from_ratio=ffn_from_ratio,
)

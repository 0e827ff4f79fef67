"""BART (Lewis et al. 2019, arXiv 1910.13461): post-norm encoder-decoder, learned positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search_spaces.family import Axes, Family, Skip, Stack
from search_spaces.tasks import TRANSLATION_TASKS

if TYPE_CHECKING:
    from search_spaces.layout import Layout
    from search_spaces.subnet import SubnetConfig

ENCODER: dict[str, Axes] = {
    "self_attn.q_proj": ("heads", "hidden"),
    "self_attn.k_proj": ("heads", "hidden"),
    "self_attn.v_proj": ("heads", "hidden"),
    "self_attn.out_proj": ("hidden", "heads"),
    "self_attn_layer_norm": ("hidden",),
    "fc1": ("ffn", "hidden"),
    "fc2": ("hidden", "ffn"),
    "final_layer_norm": ("hidden",),
}

DECODER: dict[str, Axes] = {
    **ENCODER,
    "encoder_attn.q_proj": ("cross_heads", "hidden"),
    "encoder_attn.k_proj": ("cross_heads", "hidden"),
    "encoder_attn.v_proj": ("cross_heads", "hidden"),
    "encoder_attn.out_proj": ("hidden", "cross_heads"),
    "encoder_attn_layer_norm": ("hidden",),
}

NO_SELF_ATTENTION: dict[str, Skip] = {"self_attn": "zeros, None", "self_attn_layer_norm": "identity"}
NO_CROSS_ATTENTION: dict[str, Skip] = {"encoder_attn": "zeros, None", "encoder_attn_layer_norm": "identity"}
NO_FEED_FORWARD: dict[str, Skip] = {"fc1": "input", "fc2": "zeros", "final_layer_norm": "identity"}

BART_STACKS = (
    Stack(
        layers="encoder.layers",
        attention_module="self_attn",
        modules=ENCODER,
        attributes={"self_attn": {"num_heads": "heads"}},
        skips={"attention": NO_SELF_ATTENTION, "mlp": NO_FEED_FORWARD},
    ),
    Stack(
        layers="decoder.layers",
        attention_module="self_attn",
        modules=DECODER,
        attributes={"self_attn": {"num_heads": "heads"}, "encoder_attn": {"num_heads": "heads"}},
        skips={"attention": {**NO_SELF_ATTENTION, **NO_CROSS_ATTENTION}, "mlp": NO_FEED_FORWARD},
        source_modules=("encoder_attn.k_proj", "encoder_attn.v_proj"),
    ),
)

BART_CONFIG_NAMES = {
    "num_hidden_layers": ("encoder_layers", "decoder_layers"),
    "num_attention_heads": ("encoder_attention_heads", "decoder_attention_heads"),
    "intermediate_size": ("encoder_ffn_dim", "decoder_ffn_dim"),
}


def keeps_embedding_scale(layout: Layout, subnet: SubnetConfig) -> bool:
    """Whether a stock model scales its embeddings as the parent does: the scale is the root of the hidden size."""
    return not layout.config.scale_embedding or subnet.hidden_size == layout.parent.hidden_size


BART = Family(
    model_type="bart",
    tasks=TRANSLATION_TASKS,
    stacks=BART_STACKS,
    outside_layers={
        "shared": (None, "hidden"),
        "embed_tokens": (None, "hidden"),
        "embed_positions": (None, "hidden"),
        "layernorm_embedding": ("hidden",),
        "lm_head": (None, "hidden"),
    },
    runs_on={"lm_head": "token"},
    learned_positions="embed_positions",
    embedding_fixed_reason="its encoder, decoder and output head share one table",
    head_dim_in_config=False,
    config_names=BART_CONFIG_NAMES,
    has_stock_config=keeps_embedding_scale,
)

"""Wav2Vec2 (Baevski et al. 2020, arXiv 2006.11477): convolutions over a wave, then post-norm or pre-norm layers."""

from search_spaces.family import Family, Stack
from search_spaces.tasks import SPEECH_ENCODER_TASKS

CONVOLUTIONS = 8
"""Most convolutions over the wave; models have seven."""

WAV2VEC2 = Family(
    model_type="wav2vec2",
    tasks=SPEECH_ENCODER_TASKS,
    stacks=(
        Stack(
            layers="encoder.layers",
            attention_module="attention",
            modules={
                "attention.q_proj": ("heads", "hidden"),
                "attention.k_proj": ("heads", "hidden"),
                "attention.v_proj": ("heads", "hidden"),
                "attention.out_proj": ("hidden", "heads"),
                "layer_norm": ("hidden",),
                "feed_forward.intermediate_dense": ("ffn", "hidden"),
                "feed_forward.output_dense": ("hidden", "ffn"),
                "final_layer_norm": ("hidden",),
            },
            attributes={"attention": {"num_heads": "heads"}},
            skips={
                "attention": {"attention": "zeros, None", "layer_norm": "identity"},
                "mlp": {"feed_forward": "zeros", "final_layer_norm": "identity"},
            },
        ),
    ),
    outside_layers={
        "feature_projection.projection": ("hidden",),
        "encoder.layer_norm": ("hidden",),
        "lm_head": (None, "hidden"),
        "projector": (None, "hidden"),
    },
    runs_on={
        **{f"conv_layers.{k}.conv": f"convolution {k}" for k in range(CONVOLUTIONS)},
        "feature_projection.projection": "token",
        "pos_conv_embed.conv": "token",
        "lm_head": "token",
        "projector": "token",
        "classifier": "once",
    },
    head_dim_in_config=False,
    required_values={"use_weighted_layer_sum": False, "add_adapter": False, "adapter_attn_dim": None},
    fixed_reasons={"hidden_size": "positions are a convolution over groups of channels"},
)

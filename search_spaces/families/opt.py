"""OPT (Zhang et al. 2022, arXiv 2205.01068): pre-norm decoder, ReLU, learned positions counted from 2."""

from search_spaces.family import Family, Stack
from search_spaces.tasks import DECODER_TASKS, without

OPT = Family(
    model_type="opt",
    tasks=without(DECODER_TASKS, "token-classification"),
    stacks=(
        Stack(
            layers="decoder.layers",
            attention_module="self_attn",
            modules={
                "self_attn.q_proj": ("heads", "hidden"),
                "self_attn.k_proj": ("heads", "hidden"),
                "self_attn.v_proj": ("heads", "hidden"),
                "self_attn.out_proj": ("hidden", "heads"),
                "self_attn_layer_norm": ("hidden",),
                "fc1": ("ffn", "hidden"),
                "fc2": ("hidden", "ffn"),
                "final_layer_norm": ("hidden",),
            },
            attributes={"self_attn": {"num_heads": "heads"}},
            skips={
                "attention": {"self_attn_layer_norm": "identity", "self_attn": "zeros, None"},
                "mlp": {"final_layer_norm": "identity", "fc1": "identity", "fc2": "zeros"},
            },
        ),
    ),
    outside_layers={
        "embed_tokens": ("vocab", "embedding"),
        "embed_positions": (None, "hidden"),
        "project_in": ("hidden", "embedding"),
        "project_out": ("embedding", "hidden"),
        "final_layer_norm": ("hidden",),
        "lm_head": ("vocab", "embedding"),
        "score": (None, "embedding"),
        "qa_outputs": (None, "embedding"),
    },
    runs_on={
        "project_in": "token",
        "project_out": "token",
        "lm_head": "token",
        "score": "token",
        "qa_outputs": "token",
    },
    learned_positions="embed_positions",
    embedding="embed_tokens",
    head_dim_in_config=False,
    config_names={"intermediate_size": ("ffn_dim",), "embedding_size": ("word_embed_proj_dim",)},
    required_values={"layer_norm_elementwise_affine": True},
)

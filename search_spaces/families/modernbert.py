"""ModernBERT (Warner et al. 2024, arXiv 2412.13663): pre-norm encoder, rotary positions, local and global attention;
query, key and value are one matrix, so are the two halves of the gated FFN."""

from search_spaces.family import Family, Stack
from search_spaces.tasks import TEXT_ENCODER_TASKS

MODERNBERT = Family(
    model_type="modernbert",
    tasks=TEXT_ENCODER_TASKS,
    stacks=(
        Stack(
            layers="layers",
            attention_module="attn",
            modules={
                "attn_norm": ("hidden",),
                "attn.Wqkv": (("heads", "heads", "heads"), "hidden"),
                "attn.Wo": ("hidden", "heads"),
                "mlp_norm": ("hidden",),
                "mlp.Wi": (("ffn", "ffn"), "hidden"),
                "mlp.Wo": ("hidden", "ffn"),
            },
            skips={
                "attention": {"attn_norm": "identity", "attn": "zeros, None"},
                "mlp": {"mlp_norm": "identity", "mlp": "zeros"},
            },
            missing_in_first_layer={"attn_norm": "mlp_norm"},
        ),
    ),
    outside_layers={
        "embeddings.tok_embeddings": ("vocab", "hidden"),
        "embeddings.norm": ("hidden",),
        "final_norm": ("hidden",),
        "head.dense": ("hidden", "hidden"),
        "head.norm": ("hidden",),
        "classifier": (None, "hidden"),
        "decoder": ("vocab", "hidden"),
    },
    runs_on={"head.dense": "label", "classifier": "label", "decoder": "token"},
    embedding="embeddings.tok_embeddings",
    head_dim_in_config=False,
    per_layer_fields=("layer_types",),
)

"""ViT (Dosovitskiy et al. 2021, arXiv 2010.11929): pre-norm encoder over image patches and a class token."""

from search_spaces.family import Family, Stack
from search_spaces.tasks import IMAGE_ENCODER_TASKS

VIT = Family(
    model_type="vit",
    tasks=IMAGE_ENCODER_TASKS,
    stacks=(
        Stack(
            layers="layers",
            attention_module="attention",
            modules={
                "attention.q_proj": ("heads", "hidden"),
                "attention.k_proj": ("heads", "hidden"),
                "attention.v_proj": ("heads", "hidden"),
                "attention.o_proj": ("hidden", "heads"),
                "mlp.fc1": ("ffn", "hidden"),
                "mlp.fc2": ("hidden", "ffn"),
                "layernorm_before": ("hidden",),
                "layernorm_after": ("hidden",),
            },
            attributes={"attention": {"num_attention_heads": "heads"}},
            skips={
                "attention": {"layernorm_before": "identity", "attention": "zeros, None"},
                "mlp": {"layernorm_after": "identity", "mlp": "zeros"},
            },
        ),
    ),
    outside_layers={
        "embeddings.cls_token": (None, None, "hidden"),
        "embeddings.mask_token": (None, None, "hidden"),
        "embeddings.distillation_token": (None, None, "hidden"),
        "embeddings.position_embeddings": (None, "positions", "hidden"),
        "patch_embeddings.projection": ("hidden",),
        "layernorm": ("hidden",),
        "pooler.dense": (None, "hidden"),
        "classifier": (None, "hidden"),
    },
    runs_on={"patch_embeddings.projection": "patch", "pooler.dense": "once", "classifier": "once"},
    head_dim_in_config=True,
)

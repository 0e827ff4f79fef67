"""CLIP's vision tower (Radford et al. 2021, arXiv 2103.00020): pre-norm encoder over patches and a class token.

Sizes are those of ``vision_config``; an image classifier has no text tower.
"""

from search_spaces.family import Family, Stack
from search_spaces.tasks import IMAGE_ENCODER_TASKS

CLIP = Family(
    model_type="clip",
    tasks=IMAGE_ENCODER_TASKS,
    stacks=(
        Stack(
            layers="vision_model.encoder.layers",
            attention_module="self_attn",
            modules={
                "layer_norm1": ("hidden",),
                "self_attn.q_proj": ("heads", "hidden"),
                "self_attn.k_proj": ("heads", "hidden"),
                "self_attn.v_proj": ("heads", "hidden"),
                "self_attn.out_proj": ("hidden", "heads"),
                "layer_norm2": ("hidden",),
                "mlp.fc1": ("ffn", "hidden"),
                "mlp.fc2": ("hidden", "ffn"),
            },
            attributes={"self_attn": {"num_heads": "heads"}},
            skips={
                "attention": {"layer_norm1": "identity", "self_attn": "zeros, None"},
                "mlp": {"layer_norm2": "identity", "mlp": "zeros"},
            },
        ),
    ),
    outside_layers={
        "vision_model.embeddings.class_embedding": ("hidden",),
        "vision_model.embeddings.patch_embedding": ("hidden",),
        "vision_model.embeddings.position_embedding": ("positions", "hidden"),
        "vision_model.pre_layrnorm": ("hidden",),
        "vision_model.post_layernorm": ("hidden",),
        "classifier": (None, "hidden"),
    },
    runs_on={"vision_model.embeddings.patch_embedding": "patch", "classifier": "once"},
    head_dim_in_config=False,
    sub_config="vision_config",
)

"""CLIP (Radford et al. 2021, arXiv 2103.00020): a pre-norm encoder over patches and a class token, and one over texts.

An image classifier has the image tower only. Sizes are those of ``vision_config`` and ``text_config``.
"""

from dataclasses import replace

from search_spaces.family import Family, Stack
from search_spaces.tasks import IMAGE_ENCODER_TASKS, RETRIEVAL_TASK, TOWERS_TASK

IMAGE_TOWER = Family(
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

TEXT_TOWER = replace(
    IMAGE_TOWER.stacks[0],
    layers="text_model.encoder.layers",
    attention_module="",
    modules={
        path: tuple("text_hidden" if axis == "hidden" else axis for axis in axes)
        for path, axes in IMAGE_TOWER.stacks[0].modules.items()
    },
)
SIZES_OF_LAYERS = ("num_hidden_layers", "num_attention_heads", "intermediate_size")

TOWERS = replace(
    IMAGE_TOWER,
    tasks=(TOWERS_TASK, RETRIEVAL_TASK),
    stacks=(IMAGE_TOWER.stacks[0], TEXT_TOWER),
    outside_layers={
        **{path: axes for path, axes in IMAGE_TOWER.outside_layers.items() if path != "classifier"},
        "visual_projection": (None, "hidden"),
        "text_model.embeddings.token_embedding": (None, "text_hidden"),
        "text_model.embeddings.position_embedding": (None, "text_hidden"),
        "text_model.final_layer_norm": ("text_hidden",),
        "text_projection": (None, "text_hidden"),
    },
    runs_on={
        "vision_model.embeddings.patch_embedding": "patch",
        "visual_projection": "once",
        "text_projection": "text",
    },
    config_names={name: (name, f"text_config.{name}") for name in SIZES_OF_LAYERS},
)

CLIP = replace(IMAGE_TOWER, of_task=dict.fromkeys(TOWERS.tasks, TOWERS))

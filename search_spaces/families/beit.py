"""BEiT (Bao et al. 2021, arXiv 2106.08254): ViT with layer scales and, in each layer, biases of relative positions."""

from dataclasses import replace

from search_spaces.families.vit import VIT

BIAS = "relative_position_bias"

BEIT = replace(
    VIT,
    model_type="beit",
    stacks=(
        replace(
            VIT.stacks[0],
            attention_module="",
            modules={
                **VIT.stacks[0].modules,
                "lambda_1": ("hidden",),
                "lambda_2": ("hidden",),
                f"{BIAS}.relative_position_bias_table": (None, "head_biases"),
            },
            skips={**VIT.stacks[0].skips, "attention": {**VIT.stacks[0].skips["attention"], BIAS: "identity"}},
        ),
    ),
    outside_layers={
        "embeddings.cls_token": (None, None, "hidden"),
        "embeddings.mask_token": (None, None, "hidden"),
        "embeddings.position_embeddings": (None, None, "hidden"),
        "patch_embeddings.projection": ("hidden",),
        "layernorm": ("hidden",),
        "classifier": (None, "hidden"),
    },
    runs_on={"patch_embeddings.projection": "patch", "classifier": "once"},
    required_values={"use_relative_position_bias": True, "use_shared_relative_position_bias": False},
    fixed_reasons={"image_size": "its tables of relative positions have the size of the parent's grid"},
)

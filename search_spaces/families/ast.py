"""AST (Gong et al. 2021, arXiv 2104.01778): ViT's layers over the patches of a spectrogram, and two first tokens."""

from dataclasses import replace

from search_spaces.families.vit import VIT

AST = replace(
    VIT,
    model_type="audio-spectrogram-transformer",
    tasks=("audio-classification",),
    outside_layers={
        "embeddings.cls_token": (None, None, "hidden"),
        "embeddings.distillation_token": (None, None, "hidden"),
        "embeddings.position_embeddings": (None, None, "hidden"),
        "patch_embeddings.projection": ("hidden",),
        "layernorm": ("hidden",),
        "classifier.dense": (None, "hidden"),
    },
    runs_on={"patch_embeddings.projection": "patch", "classifier.dense": "once"},
    special_tokens=2,
)

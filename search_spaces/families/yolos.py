"""YOLOS (Fang et al. 2021, arXiv 2106.00666): a ViT that reads queries beside the patches, and finds objects there."""

from __future__ import annotations

from dataclasses import replace

from search_spaces.families.bert import BERT_LAYERS
from search_spaces.family import Axes, Family
from search_spaces.tasks import DETECTION_TASKS

MODULES: dict[str, Axes] = {
    "attention.attention.query": ("heads", "hidden"),
    "attention.attention.key": ("heads", "hidden"),
    "attention.attention.value": ("heads", "hidden"),
    "attention.output.dense": ("hidden", "heads"),
    "intermediate.dense": ("ffn", "hidden"),
    "output.dense": ("hidden", "ffn"),
    "layernorm_before": ("hidden",),
    "layernorm_after": ("hidden",),
}
HEADS: dict[str, Axes] = {
    f"{head}.layers.{number}": ("hidden", "hidden") if number < 2 else (None, "hidden")
    for head in ("class_labels_classifier", "bbox_predictor")
    for number in range(3)
}

YOLOS = Family(
    model_type="yolos",
    tasks=DETECTION_TASKS,
    stacks=(
        replace(
            BERT_LAYERS,
            attention_module="attention.attention",
            modules=MODULES,
            attributes={"attention.attention": {"num_attention_heads": "heads", "all_head_size": "heads*head_dim"}},
            skips={
                "attention": {"layernorm_before": "identity", "attention": "zeros"},
                "mlp": {"layernorm_after": "identity", "intermediate": "input", "output": "residual"},
            },
        ),
    ),
    outside_layers={
        "embeddings.cls_token": (None, None, "hidden"),
        "embeddings.detection_tokens": (None, "queries", "hidden"),
        "embeddings.position_embeddings": (None, "positions", "hidden"),
        "patch_embeddings.projection": ("hidden",),
        "layernorm": ("hidden",),
        "pooler.dense": ("hidden", "hidden"),
        **HEADS,
    },
    runs_on={"patch_embeddings.projection": "patch", "pooler.dense": "once", **dict.fromkeys(HEADS, "query")},
    head_dim_in_config=False,
    config_names={"num_queries": ("num_detection_tokens",)},
    required_values={"use_mid_position_embeddings": False},
)

"""ALBERT (Lan et al. 2020, arXiv 1909.11942): one BERT layer applied again and again to projected embeddings.

What may vary: how often the layer is applied, its heads and neurons, and the hidden size, all uniform; no application
can differ from another, so there is no per-layer scope and no block to skip. The embeddings keep their width.
"""

from search_spaces.family import Family, Stack
from search_spaces.tasks import TEXT_ENCODER_TASKS

ALBERT = Family(
    model_type="albert",
    tasks=TEXT_ENCODER_TASKS,
    stacks=(
        Stack(
            layers="encoder.albert_layer_groups.0.albert_layers",
            attention_module="attention",
            modules={
                "attention.query": ("heads", "hidden"),
                "attention.key": ("heads", "hidden"),
                "attention.value": ("heads", "hidden"),
                "attention.dense": ("hidden", "heads"),
                "attention.LayerNorm": ("hidden",),
                "ffn": ("ffn", "hidden"),
                "ffn_output": ("hidden", "ffn"),
                "full_layer_layer_norm": ("hidden",),
            },
            attributes={"attention": {"num_attention_heads": "heads", "all_head_size": "heads*head_dim"}},
        ),
    ),
    outside_layers={
        "embeddings.word_embeddings": ("vocab", None),
        "embedding_hidden_mapping_in": ("hidden", None),
        "pooler": ("hidden", "hidden"),
        "classifier": (None, "hidden"),
        "qa_outputs": (None, "hidden"),
        "predictions.dense": (None, "hidden"),
        "predictions.decoder": ("vocab", None),
        "predictions.bias": ("vocab",),
    },
    runs_on={
        "embedding_hidden_mapping_in": "token",
        "pooler": "once",
        "classifier": "label",
        "qa_outputs": "token",
        "predictions.dense": "token",
        "predictions.decoder": "token",
    },
    learned_positions="position_embeddings",
    embedding_fixed_reason="its embeddings are projected to the hidden size already",
    head_dim_in_config=False,
    required_values={"num_hidden_groups": 1, "inner_group_num": 1},
    shared_layers=True,
)

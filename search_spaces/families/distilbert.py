"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT's layers under other names, no token types, no pooler."""

from search_spaces.family import Family, Stack
from search_spaces.tasks import TEXT_ENCODER_TASKS

DISTILBERT = Family(
    model_type="distilbert",
    tasks=TEXT_ENCODER_TASKS,
    stacks=(
        Stack(
            layers="transformer.layer",
            attention_module="attention",
            modules={
                "attention.q_lin": ("heads", "hidden"),
                "attention.k_lin": ("heads", "hidden"),
                "attention.v_lin": ("heads", "hidden"),
                "attention.out_lin": ("hidden", "heads"),
                "sa_layer_norm": ("hidden",),
                "ffn.lin1": ("ffn", "hidden"),
                "ffn.lin2": ("hidden", "ffn"),
                "output_layer_norm": ("hidden",),
            },
            attributes={"attention": {"n_heads": "heads"}},
            skips={
                "attention": {"attention": "zeros, None", "sa_layer_norm": "identity"},
                "mlp": {"ffn": "zeros", "output_layer_norm": "identity"},
            },
        ),
    ),
    outside_layers={
        "embeddings.word_embeddings": ("vocab", "hidden"),
        "embeddings.position_embeddings": (None, "hidden"),
        "embeddings.LayerNorm": ("hidden",),
        "pre_classifier": ("hidden", "hidden"),
        "classifier": (None, "hidden"),
        "qa_outputs": (None, "hidden"),
        "vocab_transform": ("hidden", "hidden"),
        "vocab_layer_norm": ("hidden",),
        "vocab_projector": ("vocab", "hidden"),
    },
    runs_on={
        "pre_classifier": "once",
        "classifier": "label",
        "qa_outputs": "token",
        "vocab_transform": "token",
        "vocab_projector": "token",
    },
    learned_positions="position_embeddings",
    embedding="embeddings.word_embeddings",
    head_dim_in_config=False,
    config_names={"intermediate_size": ("hidden_dim",)},
)

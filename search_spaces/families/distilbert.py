"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT's layers under other names, no token types, no pooler."""

from search_spaces.family import Family

DISTILBERT = Family(
    model_type="distilbert",
    auto_classes={"text-classification": "AutoModelForSequenceClassification"},
    layers="transformer.layer",
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
    positions={"pre_classifier": "once", "classifier": "once"},
    head_dim_in_config=False,
    intermediate_size="hidden_dim",
)

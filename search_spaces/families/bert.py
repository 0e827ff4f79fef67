"""BERT (Devlin et al. 2019, arXiv 1810.04805): post-norm encoder, separate query, key and value."""

from search_spaces.family import Family

BERT = Family(
    model_type="bert",
    auto_classes={
        "text-classification": "AutoModelForSequenceClassification",
        "token-classification": "AutoModelForTokenClassification",
        "question-answering": "AutoModelForQuestionAnswering",
        "fill-mask": "AutoModelForMaskedLM",
    },
    layers="encoder.layer",
    modules={
        "attention.self.query": ("heads", "hidden"),
        "attention.self.key": ("heads", "hidden"),
        "attention.self.value": ("heads", "hidden"),
        "attention.output.dense": ("hidden", "heads"),
        "attention.output.LayerNorm": ("hidden",),
        "intermediate.dense": ("ffn", "hidden"),
        "output.dense": ("hidden", "ffn"),
        "output.LayerNorm": ("hidden",),
    },
    attributes={"attention.self": {"num_attention_heads": "heads", "all_head_size": "heads*head_dim"}},
    positions={"pooler.dense": "once", "classifier": "once"},
    head_dim_in_config=False,
)

"""RemBERT (Chung et al. 2021, arXiv 2010.12821): BERT's layers, narrow embeddings that are projected to the hidden
size, and an output head with embeddings of its own."""

from dataclasses import replace

from search_spaces.families.bert import BERT, BERT_LAYERS

REMBERT = replace(
    BERT,
    model_type="rembert",
    stacks=(replace(BERT_LAYERS, attention_module=""),),
    outside_layers={
        "embedding_hidden_mapping_in": ("hidden", None),
        "pooler.dense": ("hidden", "hidden"),
        "classifier": (None, "hidden"),
        "qa_outputs": (None, "hidden"),
        "predictions.dense": (None, "hidden"),
    },
    runs_on={
        "embedding_hidden_mapping_in": "token",
        "pooler.dense": "once",
        "classifier": "label",
        "qa_outputs": "token",
        "predictions.dense": "token",
        "predictions.decoder": "token",
    },
    embedding="",
    embedding_fixed_reason="its embeddings are projected to the hidden size already",
)

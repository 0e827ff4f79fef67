"""RoBERTa (Liu et al. 2019, arXiv 1907.11692): BERT's layers, positions counted from 2, a head of two layers."""

from dataclasses import replace

from search_spaces.families.bert import BERT

ROBERTA = replace(
    BERT,
    model_type="roberta",
    outside_layers={
        "embeddings.word_embeddings": ("vocab", "hidden"),
        "embeddings.position_embeddings": (None, "hidden"),
        "embeddings.token_type_embeddings": (None, "hidden"),
        "embeddings.LayerNorm": ("hidden",),
        "pooler.dense": ("hidden", "hidden"),
        "classifier": (None, "hidden"),
        "classifier.dense": ("hidden", "hidden"),
        "classifier.out_proj": (None, "hidden"),
        "qa_outputs": (None, "hidden"),
        "lm_head.dense": ("hidden", "hidden"),
        "lm_head.layer_norm": ("hidden",),
        "lm_head.decoder": ("vocab", "hidden"),
        "lm_head.bias": ("vocab",),
    },
    runs_on={
        "pooler.dense": "once",
        "classifier": "token",
        "classifier.dense": "once",
        "classifier.out_proj": "once",
        "qa_outputs": "token",
        "lm_head.dense": "token",
        "lm_head.decoder": "token",
    },
    position_offset=2,
)

"""ELECTRA (Clark et al. 2020, arXiv 2003.10555): BERT's layers on embeddings that are projected to the hidden size."""

from dataclasses import replace

from search_spaces.families.bert import BERT

ELECTRA = replace(
    BERT,
    model_type="electra",
    outside_layers={
        "embeddings.word_embeddings": ("vocab", "embedding"),
        "embeddings.position_embeddings": (None, "embedding"),
        "embeddings.token_type_embeddings": (None, "embedding"),
        "embeddings.LayerNorm": ("embedding",),
        "embeddings_project": ("hidden", "embedding"),
        "classifier": (None, "hidden"),
        "classifier.dense": ("hidden", "hidden"),
        "classifier.out_proj": (None, "hidden"),
        "qa_outputs": (None, "hidden"),
        "generator_predictions.dense": ("embedding", "hidden"),
        "generator_predictions.LayerNorm": ("embedding",),
        "generator_lm_head": ("vocab", "embedding"),
    },
    runs_on={
        "embeddings_project": "token",
        "classifier": "token",
        "classifier.dense": "once",
        "classifier.out_proj": "once",
        "qa_outputs": "token",
        "generator_predictions.dense": "token",
        "generator_lm_head": "token",
    },
    embedding="",
    embedding_fixed_reason="its embeddings are projected to the hidden size already",
    config_names={"embedding_size": ("embedding_size",)},
)

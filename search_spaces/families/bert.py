"""BERT (Devlin et al. 2019, arXiv 1810.04805): post-norm encoder, separate query, key and value."""

from search_spaces.family import Family, Stack
from search_spaces.tasks import TEXT_ENCODER_TASKS

BERT_LAYERS = Stack(
    layers="encoder.layer",
    attention_module="attention.self",
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
    skips={"attention": {"attention": "input, None"}, "mlp": {"intermediate": "input", "output": "residual"}},
)

BERT = Family(
    model_type="bert",
    tasks=TEXT_ENCODER_TASKS,
    stacks=(BERT_LAYERS,),
    outside_layers={
        "embeddings.word_embeddings": ("vocab", "hidden"),
        "embeddings.position_embeddings": (None, "hidden"),
        "embeddings.token_type_embeddings": (None, "hidden"),
        "embeddings.LayerNorm": ("hidden",),
        "pooler.dense": ("hidden", "hidden"),
        "classifier": (None, "hidden"),
        "qa_outputs": (None, "hidden"),
        "transform.dense": ("hidden", "hidden"),
        "transform.LayerNorm": ("hidden",),
        "predictions.decoder": ("vocab", "hidden"),
        "predictions.bias": ("vocab",),
    },
    runs_on={
        "pooler.dense": "once",
        "classifier": "label",
        "qa_outputs": "token",
        "transform.dense": "token",
        "predictions.decoder": "token",
    },
    learned_positions="position_embeddings",
    embedding="embeddings.word_embeddings",
    head_dim_in_config=False,
    required_values={"add_cross_attention": False},
)

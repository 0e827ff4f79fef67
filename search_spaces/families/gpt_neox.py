"""GPT-NeoX (Black et al. 2022, arXiv 2204.06745), Pythia among them: attention and FFN side by side, rotary positions,
query, key and value interleaved head by head."""

from search_spaces.family import Family, Stack
from search_spaces.tasks import DECODER_TASKS

GPT_NEOX = Family(
    model_type="gpt_neox",
    tasks=DECODER_TASKS,
    stacks=(
        Stack(
            layers="layers",
            attention_module="attention",
            modules={
                "attention.query_key_value": ("qkv_heads", "hidden"),
                "attention.dense": ("hidden", "heads"),
                "mlp.dense_h_to_4h": ("ffn", "hidden"),
                "mlp.dense_4h_to_h": ("hidden", "ffn"),
                "input_layernorm": ("hidden",),
                "post_attention_layernorm": ("hidden",),
            },
            skips={
                "attention": {"input_layernorm": "identity", "attention": "zeros, None"},
                "mlp": {"post_attention_layernorm": "identity", "mlp": "zeros"},
            },
        ),
    ),
    outside_layers={
        "embed_in": ("vocab", "hidden"),
        "final_layer_norm": ("hidden",),
        "lm_head": ("vocab", "hidden"),
        "score": (None, "hidden"),
        "classifier": (None, "hidden"),
        "qa_outputs": (None, "hidden"),
    },
    runs_on={"lm_head": "token", "score": "token", "classifier": "token", "qa_outputs": "token"},
    embedding="embed_in",
    head_dim_in_config=False,
)

"""Llama (Touvron et al. 2023, arXiv 2302.13971): pre-norm decoder, rotary positions, gated FFN, grouped queries."""

from search_spaces.family import Family, Stack
from search_spaces.tasks import DECODER_TASKS

LLAMA_LAYERS = Stack(
    layers="layers",
    attention_module="self_attn",
    modules={
        "self_attn.q_proj": ("heads", "hidden"),
        "self_attn.k_proj": ("kv_heads", "hidden"),
        "self_attn.v_proj": ("kv_heads", "hidden"),
        "self_attn.o_proj": ("hidden", "heads"),
        "mlp.gate_proj": ("ffn", "hidden"),
        "mlp.up_proj": ("ffn", "hidden"),
        "mlp.down_proj": ("hidden", "ffn"),
        "input_layernorm": ("hidden",),
        "post_attention_layernorm": ("hidden",),
    },
    attributes={"self_attn": {"num_key_value_groups": "heads_per_group"}},
    skips={
        "attention": {"input_layernorm": "identity", "self_attn": "zeros, None"},
        "mlp": {"post_attention_layernorm": "identity", "mlp": "zeros"},
    },
)

LLAMA = Family(
    model_type="llama",
    tasks=DECODER_TASKS,
    stacks=(LLAMA_LAYERS,),
    outside_layers={
        "embed_tokens": ("vocab", "hidden"),
        "norm": ("hidden",),
        "lm_head": ("vocab", "hidden"),
        "score": (None, "hidden"),
        "qa_outputs": (None, "hidden"),
    },
    runs_on={"lm_head": "token", "score": "token", "qa_outputs": "token"},
    embedding="embed_tokens",
    head_dim_in_config=True,
)

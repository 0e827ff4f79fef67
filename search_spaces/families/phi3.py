"""Phi-3 (Abdin et al. 2024, arXiv 2404.14219): Llama with query, key and value fused, and gate and up projection."""

from dataclasses import replace

from search_spaces.families.llama import LLAMA, LLAMA_LAYERS
from search_spaces.tasks import DECODER_TASKS, without

PHI3 = replace(
    LLAMA,
    model_type="phi3",
    tasks=without(DECODER_TASKS, "question-answering"),
    stacks=(
        replace(
            LLAMA_LAYERS,
            modules={
                "self_attn.qkv_proj": (("heads", "kv_heads", "kv_heads"), "hidden"),
                "self_attn.o_proj": ("hidden", "heads"),
                "mlp.gate_up_proj": (("ffn", "ffn"), "hidden"),
                "mlp.down_proj": ("hidden", "ffn"),
                "input_layernorm": ("hidden",),
                "post_attention_layernorm": ("hidden",),
            },
            attributes={
                "self_attn": {"num_key_value_groups": "heads_per_group", "num_key_value_heads": "kv_heads"},
                "self_attn.config": {"num_attention_heads": "heads"},
            },
        ),
    ),
)

"""OLMo 2 (OLMo Team 2025, arXiv 2501.00656): Llama with norms after each block, and over the queries and the keys."""

from dataclasses import replace

from search_spaces.families.llama import LLAMA, LLAMA_LAYERS

OLMO2 = replace(
    LLAMA,
    model_type="olmo2",
    tasks=("text-generation", "text-classification"),
    stacks=(
        replace(
            LLAMA_LAYERS,
            modules={
                **{path: axes for path, axes in LLAMA_LAYERS.modules.items() if path != "input_layernorm"},
                "self_attn.q_norm": ("heads",),
                "self_attn.k_norm": ("kv_heads",),
                "post_feedforward_layernorm": ("hidden",),
            },
            skips={"mlp": {"mlp": "zeros", "post_feedforward_layernorm": "identity"}},
        ),
    ),
    per_layer_fields=("layer_types",),
    fixed_reasons={"num_attention_heads": "the norm of its queries and keys is over all heads"},
)

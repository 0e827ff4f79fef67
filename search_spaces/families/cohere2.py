"""Cohere 2, or Command R7B (Cohere 2024): Llama with attention and feed-forward side by side after one norm, and
rotary positions in the layers with a sliding window only."""

from dataclasses import replace

from search_spaces.families.llama import LLAMA, LLAMA_LAYERS

COHERE2 = replace(
    LLAMA,
    model_type="cohere2",
    tasks=("text-generation",),
    stacks=(
        replace(
            LLAMA_LAYERS,
            modules={path: axes for path, axes in LLAMA_LAYERS.modules.items() if path != "post_attention_layernorm"},
            skips={"attention": {"self_attn": "zeros, None"}, "mlp": {"mlp": "zeros"}},
        ),
    ),
    per_layer_fields=("layer_types",),
    required_values={"use_qk_norm": False},
)

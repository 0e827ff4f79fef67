"""SmolLM3 (Hugging Face 2025): Llama, but some layers have no rotary positions."""

from dataclasses import replace

from search_spaces.families.llama import LLAMA

SMOLLM3 = replace(LLAMA, model_type="smollm3", per_layer_fields=("layer_types", "no_rope_layers"))

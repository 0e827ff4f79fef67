"""Qwen2 (Yang et al. 2024, arXiv 2407.10671): Llama with attention biases, some layers on a sliding window."""

from dataclasses import replace

from search_spaces.families.llama import LLAMA

QWEN2 = replace(LLAMA, model_type="qwen2", per_layer_fields=("layer_types",))

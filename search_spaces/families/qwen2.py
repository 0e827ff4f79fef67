"""Qwen2 (Yang et al. 2024, arXiv 2407.10671): Llama with biases in attention, some layers with a sliding window."""

from dataclasses import replace

from search_spaces.families.llama import LLAMA

QWEN2 = replace(LLAMA, model_type="qwen2", per_layer=("layer_types",))

"""Qwen3 (Yang et al. 2025, arXiv 2505.09388): Qwen2 with norms on the query and key of a head in place of biases."""

from dataclasses import replace

from search_spaces.families.qwen2 import QWEN2

QWEN3 = replace(QWEN2, model_type="qwen3")

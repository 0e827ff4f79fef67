"""Qwen3-MoE (Yang et al. 2025, arXiv 2505.09388): Qwen3 with a mixture of experts in every layer."""

from dataclasses import replace

from search_spaces.families.mixtral import MIXTRAL

QWEN3_MOE = replace(
    MIXTRAL,
    model_type="qwen3_moe",
    config_names={"intermediate_size": ("moe_intermediate_size",)},
    required_values={**MIXTRAL.required_values, "decoder_sparse_step": 1, "mlp_only_layers": []},
)

"""Qwen2-MoE (Yang et al. 2024, arXiv 2407.10671): Qwen2 with a mixture of experts and one expert for every token."""

from dataclasses import replace

from search_spaces.families.mixtral import MIXTRAL_LAYERS
from search_spaces.families.qwen3_moe import QWEN3_MOE

QWEN2_MOE = replace(
    QWEN3_MOE,
    model_type="qwen2_moe",
    stacks=(
        replace(
            MIXTRAL_LAYERS,
            modules={
                **MIXTRAL_LAYERS.modules,
                "mlp.shared_expert.gate_proj": ("shared_ffn", "hidden"),
                "mlp.shared_expert.up_proj": ("shared_ffn", "hidden"),
                "mlp.shared_expert.down_proj": ("hidden", "shared_ffn"),
                "mlp.shared_expert_gate": ("shared_gates", "hidden"),
            },
        ),
    ),
    required_values={**QWEN3_MOE.required_values, "use_sliding_window": False},
    per_layer_fields=("layer_types",),
)

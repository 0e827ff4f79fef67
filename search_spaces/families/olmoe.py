"""OLMoE (Muennighoff et al. 2024, arXiv 2409.02060): a mixture of experts, norms over queries and keys."""

from dataclasses import replace

from search_spaces.families.mixtral import FIXED_BY_EXPERTS, MIXTRAL, MIXTRAL_LAYERS

OLMOE = replace(
    MIXTRAL,
    model_type="olmoe",
    tasks=("text-generation",),
    stacks=(
        replace(
            MIXTRAL_LAYERS,
            modules={
                **MIXTRAL_LAYERS.modules,
                "self_attn.q_norm": ("heads",),
                "self_attn.k_norm": ("kv_heads",),
            },
        ),
    ),
    head_dim_in_config=False,
    config_names={},
    fixed_reasons={**FIXED_BY_EXPERTS, "num_attention_heads": "the norm of its queries and keys is over all heads"},
)

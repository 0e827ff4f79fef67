"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with a mixture of experts in every layer.

All experts of a layer are in two parameters. The router's rows follow the experts.
"""

from dataclasses import replace

from search_spaces.families.llama import LLAMA, LLAMA_LAYERS
from search_spaces.family import Axes

EXPERTS: dict[str, Axes] = {
    "mlp.gate": ("experts", "hidden"),
    "mlp.experts.gate_up_proj": ("experts", ("ffn", "ffn"), "hidden"),
    "mlp.experts.down_proj": ("experts", "hidden", "ffn"),
}
FUSED = "all experts of a layer are in one parameter"
FIXED_BY_EXPERTS = {"mlp_rank": FUSED, "bits": FUSED}

MIXTRAL_LAYERS = replace(
    LLAMA_LAYERS,
    modules={
        **{path: axes for path, axes in LLAMA_LAYERS.modules.items() if not path.startswith("mlp.")},
        **EXPERTS,
    },
    attributes={
        **LLAMA_LAYERS.attributes,
        "mlp.gate": {"num_experts": "experts", "top_k": "experts_per_token", "hidden_dim": "hidden"},
        "mlp.experts": {"num_experts": "experts"},
    },
)

MIXTRAL = replace(
    LLAMA,
    model_type="mixtral",
    stacks=(MIXTRAL_LAYERS,),
    config_names={"num_experts": ("num_local_experts",)},
    required_values={"output_router_logits": False},
    fixed_reasons=FIXED_BY_EXPERTS,
)

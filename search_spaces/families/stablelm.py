"""StableLM (Bellagente et al. 2024, arXiv 2402.17834): Llama with layer norms and a rotary part of each head."""

from dataclasses import replace

from search_spaces.families.llama import LLAMA, LLAMA_LAYERS
from search_spaces.tasks import DECODER_TASKS, without

HEADS = {"num_heads": "heads", "num_key_value_heads": "kv_heads", "num_key_value_groups": "heads_per_group"}

STABLELM = replace(
    LLAMA,
    model_type="stablelm",
    tasks=without(DECODER_TASKS, "question-answering"),
    stacks=(replace(LLAMA_LAYERS, attributes={"self_attn": HEADS}),),
    head_dim_in_config=False,
    required_values={"qk_layernorm": False, "use_parallel_residual": False},
)

"""Falcon (Almazrouei et al. 2023, arXiv 2311.16867): attention and feed-forward side by side, grouped queries fused
with keys and values group by group, rotary positions or ALiBi."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from search_spaces.family import Family, Stack
from search_spaces.tasks import DECODER_TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def kv_heads_of(config: PreTrainedConfig) -> int:
    """Key and value heads: those of the config, but one in an older model with a single one."""
    sizes: Any = config
    return 1 if sizes.multi_query and not sizes.new_decoder_architecture else int(sizes.num_kv_heads)


FALCON = Family(
    model_type="falcon",
    tasks=DECODER_TASKS,
    stacks=(
        Stack(
            layers="h",
            modules={
                "self_attention.query_key_value": (("heads", "kv_heads", "kv_heads"), "hidden"),
                "self_attention.dense": ("hidden", "heads"),
                "mlp.dense_h_to_4h": ("ffn", "hidden"),
                "mlp.dense_4h_to_h": ("hidden", "ffn"),
                "input_layernorm": ("hidden",),
                "post_attention_layernorm": ("hidden",),
                "ln_attn": ("hidden",),
                "ln_mlp": ("hidden",),
            },
            skips={"mlp": {"mlp": "zeros"}},
        ),
    ),
    outside_layers={
        "word_embeddings": ("vocab", "hidden"),
        "ln_f": ("hidden",),
        "lm_head": ("vocab", "hidden"),
        "score": (None, "hidden"),
        "classifier": (None, "hidden"),
        "qa_outputs": (None, "hidden"),
    },
    runs_on={"lm_head": "token", "score": "token", "classifier": "token", "qa_outputs": "token"},
    embedding="word_embeddings",
    head_dim_in_config=False,
    config_names={"intermediate_size": ("ffn_hidden_size",)},
    kv_heads_of=kv_heads_of,
    fixed_reasons={"num_attention_heads": "queries, keys and values are fused group by group"},
)

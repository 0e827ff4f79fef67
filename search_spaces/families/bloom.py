"""BLOOM (BigScience 2022, arXiv 2211.05100): pre-norm decoder, each head with a fixed bias by distance (ALiBi)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search_spaces.family import Family, Stack
from search_spaces.tasks import DECODER_TASKS

if TYPE_CHECKING:
    from search_spaces.layout import Layout
    from search_spaces.subnet import SubnetConfig


def keeps_neurons(layout: Layout, subnet: SubnetConfig) -> bool:
    """Whether a stock model has as many neurons: four times its hidden size."""
    return set(subnet.intermediate_size) == {4 * subnet.hidden_size}


BLOOM = Family(
    model_type="bloom",
    tasks=DECODER_TASKS,
    stacks=(
        Stack(
            layers="h",
            modules={
                "self_attention.query_key_value": ("qkv_heads", "hidden"),
                "self_attention.dense": ("hidden", "heads"),
                "mlp.dense_h_to_4h": ("ffn", "hidden"),
                "mlp.dense_4h_to_h": ("hidden", "ffn"),
                "input_layernorm": ("hidden",),
                "post_attention_layernorm": ("hidden",),
            },
            skips={"mlp": {"post_attention_layernorm": "identity", "mlp": "residual"}},
        ),
    ),
    outside_layers={
        "word_embeddings": ("vocab", "hidden"),
        "word_embeddings_layernorm": ("hidden",),
        "ln_f": ("hidden",),
        "lm_head": ("vocab", "hidden"),
        "score": (None, "hidden"),
        "classifier": (None, "hidden"),
        "qa_outputs": (None, "hidden"),
    },
    runs_on={"lm_head": "token", "score": "token", "classifier": "token", "qa_outputs": "token"},
    embedding="word_embeddings",
    head_dim_in_config=False,
    required_values={"apply_residual_connection_post_layernorm": False},
    fixed_reasons={"num_attention_heads": "its biases by distance are computed for all heads"},
    has_stock_config=keeps_neurons,
)

"""T5 (Raffel et al. 2020, arXiv 1910.10683): pre-norm encoder-decoder; one position bias for all layers of a stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from search_spaces.family import Axes, Family, Stack
from search_spaces.tasks import TRANSLATION_TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SELF_ATTENTION: dict[str, Axes] = {
    "layer.0.SelfAttention.q": ("heads", "hidden"),
    "layer.0.SelfAttention.k": ("heads", "hidden"),
    "layer.0.SelfAttention.v": ("heads", "hidden"),
    "layer.0.SelfAttention.o": ("hidden", "heads"),
    "layer.0.SelfAttention.relative_attention_bias": (None, "head_biases"),
    "layer.0.layer_norm": ("hidden",),
}

CROSS_ATTENTION: dict[str, Axes] = {
    "layer.1.EncDecAttention.q": ("cross_heads", "hidden"),
    "layer.1.EncDecAttention.k": ("cross_heads", "hidden"),
    "layer.1.EncDecAttention.v": ("cross_heads", "hidden"),
    "layer.1.EncDecAttention.o": ("hidden", "cross_heads"),
    "layer.1.layer_norm": ("hidden",),
}

HEADS = {"n_heads": "heads", "inner_dim": "heads*head_dim"}
BIAS = ("layer.0.SelfAttention.relative_attention_bias",)


def feed_forward(path: str) -> dict[str, Axes]:
    """The feed-forward block of a layer, plain or gated."""
    return {
        f"{path}.DenseReluDense.wi": ("ffn", "hidden"),
        f"{path}.DenseReluDense.wi_0": ("ffn", "hidden"),
        f"{path}.DenseReluDense.wi_1": ("ffn", "hidden"),
        f"{path}.DenseReluDense.wo": ("hidden", "ffn"),
        f"{path}.layer_norm": ("hidden",),
    }


def rescaled_final_norm(config: PreTrainedConfig, hidden_size: int) -> Mapping[str, tuple[float, float]]:
    """A factor for the last norm: a stock model divides the input of the tied head by the root of its hidden size."""
    factor = (hidden_size / config.d_model) ** 0.5 if getattr(config, "scale_decoder_outputs", True) else 1.0
    return {"decoder.final_layer_norm.weight": (factor, 0.0)}


T5 = Family(
    model_type="t5",
    tasks=TRANSLATION_TASKS,
    stacks=(
        Stack(
            layers="encoder.block",
            modules={**SELF_ATTENTION, **feed_forward("layer.1")},
            attributes={"layer.0.SelfAttention": HEADS},
            skips={
                "attention": {"layer.0.layer_norm": "identity", "layer.0.SelfAttention": "zeros, position_bias, None"},
                "mlp": {"layer.1.layer_norm": "identity", "layer.1.DenseReluDense": "zeros"},
            },
            shared_by_first_layer=BIAS,
            mixins={"layer.0.SelfAttention": "SharedPositionBias"},
        ),
        Stack(
            layers="decoder.block",
            modules={**SELF_ATTENTION, **CROSS_ATTENTION, **feed_forward("layer.2")},
            attributes={"layer.0.SelfAttention": HEADS, "layer.1.EncDecAttention": HEADS},
            skips={
                "attention": {
                    "layer.0.layer_norm": "identity",
                    "layer.0.SelfAttention": "zeros, position_bias, None",
                    "layer.1.layer_norm": "identity",
                    "layer.1.EncDecAttention": "zeros, None, None",
                },
                "mlp": {"layer.2.layer_norm": "identity", "layer.2.DenseReluDense": "zeros"},
            },
            source_modules=("layer.1.EncDecAttention.k", "layer.1.EncDecAttention.v"),
            shared_by_first_layer=BIAS,
            mixins={
                "layer.0.SelfAttention": "SharedPositionBias",
                "layer.1.EncDecAttention": "SharedPositionBias",
            },
        ),
    ),
    outside_layers={
        "shared": ("vocab", "hidden"),
        "embed_tokens": ("vocab", "hidden"),
        "final_layer_norm": ("hidden",),
        "lm_head": ("vocab", "hidden"),
    },
    runs_on={"lm_head": "token"},
    embedding_fixed_reason="its encoder, decoder and output head share one table",
    head_dim_in_config=True,
    config_names={"num_hidden_layers": ("num_layers", "num_decoder_layers"), "intermediate_size": ("d_ff",)},
    cache_depth_field="decoder_layers",
    shared_heads=True,
    rescale_constants=rescaled_final_norm,
)

"""WavLM (Chen et al. 2021, arXiv 2110.13900): Wav2Vec2's modules, and one position bias that all layers gate.

A gate reads the channels of the residual stream that have the number of its head, so heads and channels stay.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from search_spaces.families.wav2vec2 import WAV2VEC2
from search_spaces.family import Axes

if TYPE_CHECKING:
    from search_spaces.blueprint import LayerBlueprint
    from search_spaces.layout import Layout

PROJECTIONS: dict[str, Axes] = {f"attention.{name}_proj": ("hidden", "hidden") for name in ("q", "k", "v", "out")}
GATES = "the gate of its position bias reads the channels of the residual stream that have its number"
GATE_OUTPUTS = 8
"""Outputs of the linear layer from the channels of a head to its gates."""


def gate_macs(layout: Layout, blueprint: LayerBlueprint, tokens: int) -> int:
    """Multiply-accumulates of the gates of one layer."""
    return tokens * blueprint.sizes["heads"] * layout.head_dim * GATE_OUTPUTS


WAVLM = replace(
    WAV2VEC2,
    model_type="wavlm",
    stacks=(
        replace(
            WAV2VEC2.stacks[0],
            attention_module="",
            modules={**WAV2VEC2.stacks[0].modules, **PROJECTIONS, "attention.rel_attn_embed": (None, None)},
            attributes={},
            skips={"mlp": WAV2VEC2.stacks[0].skips["mlp"]},
            shared_by_first_layer=("attention.rel_attn_embed",),
        ),
    ),
    required_values={"use_weighted_layer_sum": False, "add_adapter": False},
    fixed_reasons={
        **WAV2VEC2.fixed_reasons,
        "num_attention_heads": GATES,
        "attention_rank": "its attention reads the weights of its projections itself",
    },
    extra_macs=gate_macs,
)

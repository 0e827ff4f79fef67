"""DeBERTa v2 and v3 (He et al. 2021, arXiv 2006.03654 and 2111.09543): BERT's layers with disentangled attention,
which scores content against position embeddings of the hidden size that all layers share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from search_spaces.families.bert import BERT
from search_spaces.family import Stack
from search_spaces.module_kinds import LowRank

if TYPE_CHECKING:
    from search_spaces.blueprint import LayerBlueprint
    from search_spaces.layout import Layout


def disentangled_macs(layout: Layout, blueprint: LayerBlueprint, tokens: int) -> int:
    """Multiply-accumulates to project position embeddings to keys and queries, and to score all tokens against them.

    Unless they are shared with the content, these projections are weights of the layer too, which are counted as if
    they ran on every token; that count is subtracted here.
    """
    config = layout.sizes
    if not config.relative_attention:
        return 0
    longest = config.max_relative_positions
    span = longest if longest > 0 else config.max_position_embeddings
    buckets = getattr(config, "position_buckets", -1)
    rows = 2 * (buckets if buckets > 0 else span)
    channels, hidden = blueprint.sizes["heads"] * layout.head_dim, blueprint.sizes["hidden"]
    scored = sum(kind in (config.pos_att_type or ()) for kind in ("c2p", "p2c"))
    shared = getattr(config, "share_att_key", False)
    projected = 2 * rows if shared else scored * (rows - tokens)
    low_rank = blueprint.kind("attention.self.query_proj", LowRank)
    projection = channels * hidden if low_rank is None else low_rank.rank * (channels + hidden)
    return projected * projection + scored * rows * tokens * channels


DEBERTA_V2 = replace(
    BERT,
    model_type="deberta-v2",
    learned_positions="",
    stacks=(
        Stack(
            layers="encoder.layer",
            modules={
                "attention.self.query_proj": ("heads", "hidden"),
                "attention.self.key_proj": ("heads", "hidden"),
                "attention.self.value_proj": ("heads", "hidden"),
                "attention.self.pos_query_proj": ("heads", "hidden"),
                "attention.self.pos_key_proj": ("heads", "hidden"),
                "attention.output.dense": ("hidden", "heads"),
                "attention.output.LayerNorm": ("hidden",),
                "intermediate.dense": ("ffn", "hidden"),
                "output.dense": ("hidden", "ffn"),
                "output.LayerNorm": ("hidden",),
            },
            attributes={"attention.self": {"num_attention_heads": "heads", "all_head_size": "heads*head_dim"}},
            skips=BERT.stacks[0].skips,
        ),
    ),
    outside_layers={
        "embeddings.word_embeddings": ("vocab", "embedding"),
        "embeddings.position_embeddings": (None, "embedding"),
        "embeddings.token_type_embeddings": (None, "embedding"),
        "embeddings.embed_proj": ("hidden", "embedding"),
        "embeddings.LayerNorm": ("hidden",),
        "encoder.rel_embeddings": (None, "hidden"),
        "encoder.LayerNorm": ("hidden",),
        "encoder.conv.conv": ("hidden", "hidden"),
        "encoder.conv.LayerNorm": ("hidden",),
        "pooler.dense": ("hidden", "hidden"),
        "classifier": (None, "hidden"),
        "qa_outputs": (None, "hidden"),
        "transform.dense": ("embedding", "hidden"),
        "transform.LayerNorm": ("embedding",),
        "predictions.decoder": ("vocab", "embedding"),
        "predictions.bias": ("vocab",),
    },
    runs_on={**BERT.runs_on, "embeddings.embed_proj": "token", "encoder.conv.conv": "token"},
    config_names={"embedding_size": ("embedding_size",)},
    equal_to_hidden_size=("pooler_hidden_size",),
    required_values={**BERT.required_values, "conv_groups": 1, "legacy": True},
    extra_macs=disentangled_macs,
)

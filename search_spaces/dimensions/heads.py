"""Attention heads of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import WIDTH_FRACTIONS, Dimension, Facts, fractions_of
from search_spaces.dimensions.key_value_heads import parent_groups

if TYPE_CHECKING:
    from search_spaces.layout import Layout
    from search_spaces.subnet import SubnetConfig


class Heads(Dimension):
    """The number of attention heads, of self-attention and cross-attention alike."""

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """Heads in whole groups, so that as many share a key and value head as in the parent; one group is divided."""
        heads, groups = parent_groups(layout)
        if groups == 1:
            return fractions_of(heads, WIDTH_FRACTIONS)
        kept = fractions_of(groups, WIDTH_FRACTIONS)
        return kept if isinstance(kept, str) else [heads // groups * count for count in kept]

    def stock_config(
        self, layout: Layout, subnet: SubnetConfig, stack: int, values: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """The number of heads, and ``head_dim`` where the config has it; else the heads must fill the hidden size."""
        heads, hidden = values[self.name], layout.hidden_size(subnet, stack)
        config = super().stock_config(layout, subnet, stack, values)
        if config is None or (not layout.family.head_dim_in_config and heads * layout.head_dim != hidden):
            return None
        parent = layout.parent
        is_changed = hidden != parent.hidden_size or subnet.num_attention_heads[0] != parent.num_attention_heads[0]
        has_head_dim = layout.family.head_dim_in_config and is_changed
        return config | ({"head_dim": layout.head_dim} if has_head_dim else {})


NUM_ATTENTION_HEADS = Heads(
    "num_attention_heads",
    label="heads",
    meaning="Attention heads of a layer; 0 skips its attention block.",
    scope="attention",
    axes=("heads", "cross_heads", "cross_points", "cross_offsets", "qkv_heads", "head_biases"),
)

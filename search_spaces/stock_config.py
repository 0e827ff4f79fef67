"""Stock configs: which subnetworks a plain Hugging Face config can describe, and what it then says."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from search_spaces.dimensions.ranks import DENSE
from search_spaces.layout import Layout
from search_spaces.subnet import RANKS, SubnetConfig


def stock_update(layout: Layout, subnet: SubnetConfig) -> dict[str, Any] | None:
    """Fields that make the parent's stock config describe a subnetwork, or None where a stock config cannot.

    A stock config has one width for all layers of a stack, full attention, no skipped blocks, no factors, one kind of
    numbers and no layers of another structure; and where it cannot give ``head_dim``, heads times their width make
    the hidden size.
    """
    family, update = layout.family, layout.depth_update(subnet)
    if subnet.is_sparse or subnet.is_quantized or subnet.embedding_rank != DENSE:
        return None
    for number, positions in enumerate(layout.kept(subnet)):
        widths = [subnet.width(position) for position in positions]
        if any(width != widths[0] for width in widths) or 0 in widths[0].values():
            return None
        if any(widths[0][rank] != DENSE for rank in RANKS):
            return None
        if layout.first_differs(number, subnet):
            return None
        for name, value in _stack_fields(layout, number, widths[0]).items():
            if value is None or update.setdefault(name, value) != value:
                return None
        if not family.head_dim_in_config and widths[0]["num_attention_heads"] * layout.head_dim != subnet.hidden_size:
            return None
    if "embedding_size" in family.config_names:
        if layout.embedding_is_hidden:
            update[family.names("embedding_size")[0]] = subnet.hidden_size
        elif subnet.hidden_size == layout.embedding_size:
            return None  # a stock model of equal widths has no projection
    update |= dict.fromkeys(family.equal_to_hidden, subnet.hidden_size)
    if family.head_dim_in_config and _changes_head_dim(layout, subnet):
        update["head_dim"] = layout.head_dim
    refused = family.stock_if is not None and not family.stock_if(layout, subnet)
    return None if refused or not _is_valid(layout, update) else update


def _stack_fields(layout: Layout, stack: int, width: Mapping[str, int]) -> dict[str, int | None]:
    """What the config must say of the layers of a stack; None where it cannot."""
    family = layout.family
    unsaid = {*RANKS} if "kv_heads" in family.axes else {*RANKS, "num_key_value_heads"}
    fields = [name for name in width if name not in unsaid]
    said: dict[str, int | None] = {family.names(field)[stack]: width[field] for field in fields}
    if family.ffn_of_ratio is not None:
        said[family.names("intermediate_size")[stack]] = _ffn_ratio(layout, width)
    return said


def _ffn_ratio(layout: Layout, width: Mapping[str, int]) -> int | None:
    """The whole ratio that gives a stock model so many neurons, None where no ratio does."""
    hidden, neurons, of_ratio = width["hidden_size"], width["intermediate_size"], layout.family.ffn_of_ratio
    assert of_ratio is not None
    ratios = range(1, 2 * (neurons // hidden + 1))
    return next((ratio for ratio in ratios if of_ratio(layout.sizes, hidden, ratio) == neurons), None)


def _changes_head_dim(layout: Layout, subnet: SubnetConfig) -> bool:
    """Whether hidden size / heads, which a config means where it says nothing else, is no longer the parent's."""
    parent = layout.parent
    return subnet.hidden_size != parent.hidden_size or subnet.num_attention_heads[0] != parent.num_attention_heads[0]


def _is_valid(layout: Layout, update: Mapping[str, Any]) -> bool:
    """Whether the stock config takes these values; some demand, say, that the heads divide the hidden size."""
    from huggingface_hub.errors import StrictDataclassError

    config = copy.deepcopy(layout.config)
    sizes = getattr(config, layout.family.sub_config) if layout.family.sub_config else config
    sizes.update(dict(update))
    try:
        config.validate()
    except StrictDataclassError:
        return False
    return True

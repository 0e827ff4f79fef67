"""Stock configs: the Hugging Face config of a subnetwork, if one can describe it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from search_spaces.dimensions.ranks import FULL_RANK
from search_spaces.layout import Layout
from search_spaces.subnet import RANK_FIELDS, SubnetConfig


def stock_config_update(layout: Layout, subnet: SubnetConfig) -> dict[str, Any] | None:
    """Fields that make the parent's stock config describe a subnetwork, None if a stock config cannot.

    It can if all layers of a stack have equal sizes and the same structure, no block is skipped, attention is full, no
    layer is low-rank or quantized, and, where the config has no ``head_dim``, the heads fill the hidden size.
    """
    family, update = layout.family, layout.depth_config_update(subnet)
    if subnet.is_sparse or subnet.is_quantized or subnet.embedding_rank != FULL_RANK:
        return None
    for number, positions in enumerate(layout.kept_positions(subnet)):
        layers = [subnet.layer_values(position) for position in positions]
        if any(layer != layers[0] for layer in layers) or 0 in layers[0].values():
            return None
        if any(layers[0][rank] != FULL_RANK for rank in RANK_FIELDS):
            return None
        if layout.first_layer_differs(number, subnet):
            return None
        for name, value in _stack_fields(layout, number, layers[0]).items():
            if value is None or update.setdefault(name, value) != value:
                return None
        if not family.head_dim_in_config and layers[0]["num_attention_heads"] * layout.head_dim != subnet.hidden_size:
            return None
    if "embedding_size" in family.config_names:
        if not layout.shapes.projects_embeddings:
            update[family.names_in_config("embedding_size")[0]] = subnet.hidden_size
        elif subnet.hidden_size == layout.shapes.embedding_size:
            return None  # a stock model of equal widths has no projection
    update |= dict.fromkeys(family.equal_to_hidden_size, subnet.hidden_size)
    if family.head_dim_in_config and _changes_head_dim(layout, subnet):
        update["head_dim"] = layout.head_dim
    has_none = family.has_stock_config is not None and not family.has_stock_config(layout, subnet)
    return None if has_none or not _is_valid(layout, update) else update


def _stack_fields(layout: Layout, stack: int, values: Mapping[str, int]) -> dict[str, int | None]:
    """Config fields of the layers of a stack; a value is None if no config value gives it."""
    family = layout.family
    left_out = {*RANK_FIELDS} if "kv_heads" in family.axes else {*RANK_FIELDS, "num_key_value_heads"}
    fields = [name for name in values if name not in left_out]
    config: dict[str, int | None] = {family.names_in_config(field)[stack]: values[field] for field in fields}
    if family.ffn_from_ratio is not None:
        config[family.names_in_config("intermediate_size")[stack]] = _ffn_ratio(layout, values)
    return config


def _ffn_ratio(layout: Layout, values: Mapping[str, int]) -> int | None:
    """The integer ratio that gives a stock model the layer's number of neurons, None if there is none."""
    hidden, neurons, ffn_from_ratio = values["hidden_size"], values["intermediate_size"], layout.family.ffn_from_ratio
    assert ffn_from_ratio is not None
    ratios = range(1, 2 * (neurons // hidden + 1))
    return next((ratio for ratio in ratios if ffn_from_ratio(layout.sizes, hidden, ratio) == neurons), None)


def _changes_head_dim(layout: Layout, subnet: SubnetConfig) -> bool:
    """Whether hidden size or heads differ from the parent's, so that a config without ``head_dim`` would change it."""
    parent = layout.parent
    return subnet.hidden_size != parent.hidden_size or subnet.num_attention_heads[0] != parent.num_attention_heads[0]


def _is_valid(layout: Layout, update: Mapping[str, Any]) -> bool:
    """Whether the stock config's own validation passes; some configs require that heads divide the hidden size."""
    from huggingface_hub.errors import StrictDataclassError

    config = copy.deepcopy(layout.config)
    sizes = getattr(config, layout.family.sub_config) if layout.family.sub_config else config
    sizes.update(dict(update))
    try:
        config.validate()
    except StrictDataclassError:
        return False
    return True

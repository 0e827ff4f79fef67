"""Stock configs: the Hugging Face config of a subnetwork, if one can describe it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from search_spaces.dimensions import DIMENSIONS, PER_LAYER, PER_SUBNET
from search_spaces.layout import Layout, update_config, with_whole_lists
from search_spaces.subnet import SubnetConfig


def stock_config_update(layout: Layout, subnet: SubnetConfig) -> dict[str, Any] | None:
    """Fields that make the parent's stock config describe a subnetwork, None if a stock config cannot.

    It can if all layers of a stack have equal sizes and the same structure, no block is skipped, attention is full, no
    layer is low-rank or quantized, where the config has no ``head_dim``, the heads fill the hidden size, and no layer
    has an attribute of another index than its own.
    """
    family, update = layout.family, layout.config_update(subnet)
    for number, positions in enumerate(layout.kept_positions(subnet)):
        layers = [subnet.all_values(position) for position in positions]
        if any(layer != layers[0] for layer in layers) or layout.first_layer_differs(number, subnet):
            return None
        for name in (*PER_LAYER, *PER_SUBNET):
            fields = DIMENSIONS[name].stock_config(layout, subnet, number, layers[0])
            if fields is None or any(update.setdefault(field, value) != value for field, value in fields.items()):
                return None
    has_none = family.has_stock_config is not None and not family.has_stock_config(layout, subnet)
    has_none = has_none or any(own != stock for own, stock in layout.index_attributes(subnet).values())
    update = with_whole_lists(layout.sizes, update)
    return None if has_none or not _is_valid(layout, update) else update


def _is_valid(layout: Layout, update: Mapping[str, Any]) -> bool:
    """Whether the stock config's own validation passes; some configs require that heads divide the hidden size."""
    from huggingface_hub.errors import StrictDataclassError

    config = copy.deepcopy(layout.config)
    update_config(config, layout.family, update)
    try:
        config.validate()
    except StrictDataclassError:
        return False
    return True

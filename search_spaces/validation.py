"""Validation: whether one parent allows the choices of a recipe, a subnetwork, or an attention pattern."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from search_spaces.dimensions.attention import AttentionPattern
from search_spaces.dimensions.ranks import FULL_RANK
from search_spaces.errors import InputError
from search_spaces.subnet import BLOCKS, SubnetConfig

if TYPE_CHECKING:
    from search_spaces.layout import Layout


def check_choices(layout: Layout, choices: Mapping[str, Any]) -> None:
    """Raises InputError unless the family allows the choices of a recipe."""
    family = layout.family
    for name, values in choices.items():
        if name != "scope" and values is not None and name not in family.dimensions:
            reasons = {"hidden_size": family.hidden_fixed_reason, "embedding_rank": family.embedding_fixed_reason}
            why = f" ({reasons[name]})" if reasons.get(name) else ""
            raise InputError(
                f"`space.{name}` does not vary in `{family.model_type}`{why}, only "
                f"{', '.join(family.dimensions)}; leave it out."
            )
    if family.shared_layers and choices.get("scope", "per-layer") != "uniform":
        raise InputError(
            f"`space.scope` must be `uniform` for `{family.model_type}`, whose layers share their weights."
        )
    for block, (field, *_) in BLOCKS.items():
        if 0 in (choices.get(field) or ()) and block not in family.skippable:
            raise InputError(f"`space.{field}` must be above 0: `{family.model_type}` cannot skip its {block}.")
    for pattern in choices.get("attention") or ():
        _check_pattern(layout, pattern)


def check_subnet(layout: Layout, subnet: SubnetConfig) -> None:
    """Raises InputError unless the parent contains a subnetwork."""
    family, per_group = layout.family, partial(layout.shapes.attribute_value, "heads_per_group")
    if subnet.layers[-1] >= layout.parent.num_hidden_layers:
        raise InputError(f"a subnetwork must fit into its parent ({layout.parent}), but got {subnet}.")
    for position, layer in enumerate(subnet.layers):
        number, _ = layout.stack_of(layer)
        values, full = subnet.layer_values(position), layout.parent_values[number]
        if any(values[name] > full[name] for name in values) or per_group(values) > per_group(full):
            raise InputError(f"a subnetwork must fit into its parent ({layout.parent}), but got {subnet}.")
        for block, (field, *_) in BLOCKS.items():
            if not values[field] and block not in family.skippable:
                raise InputError(f"`{family.model_type}` cannot skip its {block}, but got {subnet}.")
    for pattern in set(subnet.attention):
        _check_pattern(layout, pattern)
    if family.shared_layers and not (subnet.is_uniform and subnet.layers == tuple(range(len(subnet.layers)))):
        raise InputError(f"the layers of `{family.model_type}` share their weights, but got {subnet}.")
    if family.hidden_fixed_reason and subnet.hidden_size != layout.parent.hidden_size:
        raise InputError(f"`hidden_size` of `{family.model_type}` is fixed: {family.hidden_fixed_reason}.")
    if subnet.embedding_rank != FULL_RANK and not family.embedding:
        raise InputError(f"the embeddings of `{family.model_type}` cannot be factorized, but got {subnet}.")
    if not all(layout.kept_positions(subnet)):
        raise InputError(f"an encoder-decoder must keep at least one encoder and one decoder layer, but got {subnet}.")


def _check_pattern(layout: Layout, text: str) -> None:
    """Raises InputError unless the layers of the parent can use an attention pattern."""
    family, pattern = layout.family, AttentionPattern.parse(text)
    if pattern is None:
        return
    if "attention" not in family.dimensions:
        raise InputError(
            f"the attention of `{family.model_type}` must be full, because it does not use transformers' attention "
            f"interface unmodified, but got `{text}`; leave it out."
        )
    slides = any("sliding" in kind for kind in getattr(layout.sizes, "layer_types", None) or ())
    slides = slides or getattr(layout.sizes, "sliding_window", None) is not None
    if (pattern.global_tokens or pattern.random_blocks) and slides and family.is_causal(0):
        raise InputError(
            f"layers of `{family.model_type}` with a sliding window cache no keys outside it, but got `{text}`; "
            "use `local:w`."
        )

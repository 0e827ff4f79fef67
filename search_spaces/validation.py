"""Validation: whether one parent allows the choices of a recipe or a subnetwork."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from search_spaces.dimensions import BLOCKS, DIMENSIONS, PER_LAYER, PER_SUBNET
from search_spaces.errors import InputError
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from search_spaces.layout import Layout


PER_GROUP = "heads_per_group"


def check_choices(layout: Layout, choices: Mapping[str, Any]) -> None:
    """Raises InputError unless the family allows the choices of a recipe."""
    family = layout.family
    given = {name: values for name, values in choices.items() if name in DIMENSIONS and values is not None}
    for name in given:
        if name not in family.dimensions:
            why = f" ({reason})" if (reason := DIMENSIONS[name].fixed_reason(family)) else ""
            raise InputError(
                f"`space.{name}` does not vary in `{family.model_type}`{why}, only "
                f"{', '.join(family.dimensions)}; leave it out."
            )
    if family.shared_layers and choices.get("scope", "per-layer") != "uniform":
        raise InputError(
            f"`space.scope` must be `uniform` for `{family.model_type}`, whose layers share their weights."
        )
    for block, (width, *_) in BLOCKS.items():
        if 0 in given.get(width, ()) and block not in family.skippable:
            raise InputError(f"`space.{width}` must be above 0: `{family.model_type}` cannot skip its {block}.")
    for name, values in given.items():
        for value in values:
            DIMENSIONS[name].check_in(layout, value)


def check_subnet(layout: Layout, subnet: SubnetConfig) -> None:
    """Raises InputError unless the parent contains a subnetwork."""
    family = layout.family
    if subnet.layers[-1] >= layout.parent.num_hidden_layers:
        raise InputError(f"a subnetwork must fit into its parent ({layout.parent}), but got {subnet}.")
    sized = [name for name in (*PER_LAYER, *PER_SUBNET) if not DIMENSIONS[name].is_categorical]
    for position, layer in enumerate(subnet.layers):
        number, _ = layout.stack_of(layer)
        values, full = subnet.all_values(position), layout.parent_values[number]
        if any(values[name] > full[name] for name in sized):
            raise InputError(f"a subnetwork must fit into its parent ({layout.parent}), but got {subnet}.")
        for block, (width, *_) in BLOCKS.items():
            if not values[width] and block not in family.skippable:
                raise InputError(f"`{family.model_type}` cannot skip its {block}, but got {subnet}.")
    for name in (*PER_LAYER, *PER_SUBNET):
        value = getattr(subnet, name)
        for one in set(value) if name in PER_LAYER else {value}:
            DIMENSIONS[name].check_in(layout, one)
    if family.shared_layers and not (subnet.is_uniform and subnet.layers == tuple(range(len(subnet.layers)))):
        raise InputError(f"the layers of `{family.model_type}` share their weights, but got {subnet}.")
    if not all(layout.kept_positions(subnet)):
        raise InputError(f"every stack of layers must keep at least one, but got {subnet}.")
    for layer, blueprint in zip(subnet.layers, layout.blueprint(subnet).layers, strict=True):
        sizes, full = blueprint.sizes, layout.full_sizes[layout.stack_of(layer)[0]]
        if layout.shapes.attribute_value(PER_GROUP, sizes) > layout.shapes.attribute_value(PER_GROUP, full):
            raise InputError(f"a subnetwork must fit into its parent ({layout.parent}), but got {subnet}.")

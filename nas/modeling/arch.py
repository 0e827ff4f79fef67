"""The edits that an exported config lists in ``nas_arch``: how a stock model becomes the subnetwork."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search_spaces import Layout, SubnetConfig
from search_spaces.dimensions.attention import AttentionPattern
from search_spaces.dimensions.bits import FULL_PRECISION
from search_spaces.layout import is_under

if TYPE_CHECKING:
    from transformers import PreTrainedModel


WEIGHT_EDITS = ("move", "shapes", "head_shapes", "low_rank", "embedding", "bits")
MODULE_EDITS = ("like", "skip", "wrap", "attributes", "attention")
"""Sections of ``nas_arch``, as `modeling_nas.apply_arch` reads them."""


def edits_of(model: PreTrainedModel, layout: Layout, subnet: SubnetConfig) -> dict[str, dict[str, object]]:
    """Returns the edits that turn a stock model of the subnetwork's depth into the subnetwork.

    Args:
        model: The parent.
        layout: Its layout.
        subnet: The subnetwork.

    Returns:
        Section -> edits, as `modeling_nas.apply_arch` describes them; without empty sections.
    """
    arch: dict[str, dict[str, object]] = {section: {} for section in (*WEIGHT_EDITS, *MODULE_EDITS)}
    bare = model.base_model is model
    prefix = "" if bare else f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters(remove_duplicate=False):
        values, location = layout.values_at(subnet, name), layout.locate(name)
        if values is not None:
            new_name = layout.name_in_subnet(subnet, name)
            if layout.is_shared_by_first_layer(location):
                new_path, old_path = (n.removeprefix(prefix).rpartition(".")[0] for n in (new_name, name))
                arch["move"] |= {new_path: old_path} if new_path != old_path else {}
            rank, path = layout.shapes.rank(location, values), new_name.removeprefix(prefix).rpartition(".")[0]
            bits = layout.bits_of(subnet, location)
            if bits != FULL_PRECISION:
                arch["bits"][path] = bits
            if rank is not None:
                shapes = layout.shapes.tensor_shapes(location, "weight", values, tuple(parameter.shape))
                outputs, inputs = shapes["up.weight"][0], shapes["down.weight"][1]
                if layout.shapes.is_embedding(location):
                    arch["embedding"][path] = [outputs, rank]
                else:
                    arch["low_rank"][path] = [inputs, outputs, rank]
                continue
            shape = layout.shapes.shape(location.axes, values, tuple(parameter.shape))
            if shape != tuple(parameter.shape):
                section = "shapes" if new_name.startswith(prefix) else "head_shapes"
                arch[section][new_name.removeprefix(prefix)] = list(shape)
    for number, positions in enumerate(layout.kept_positions(subnet)):
        stack, first_layer = layout.family.stacks[number], f"{layout.family.stacks[number].layers}.0."
        copies = layout.missing_in_first_layer(number, subnet)
        arch["like"] |= {first_layer + path: first_layer + other for path, other in copies.items()}
        for index, position in enumerate(positions[:1] if layout.family.shared_layers else positions):
            values, layer_path = subnet.layer_values(position), f"{stack.layers}.{index}."
            skips = layout.skips(number, values)
            arch["skip"] |= {layer_path + path: returns for path, returns in skips.items()}
            pattern = AttentionPattern.parse(subnet.attention[position])
            if pattern is not None:
                arch["attention"][layer_path + stack.attention_module] = pattern.to_list()
            arch["wrap"] |= {layer_path + p: name for p, name in stack.mixins.items() if not is_under(p, skips)}
            for path, formulas in stack.attributes.items():
                if not is_under(path, skips):
                    attributes = {name: layout.shapes.attribute_value(f, values) for name, f in formulas.items()}
                    arch["attributes"][layer_path + path] = attributes
    return {section: edits for section, edits in arch.items() if edits}

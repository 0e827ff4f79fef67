"""Arch: what a self-contained export says of itself beside the config of the stock model that it is an edit of."""

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
"""Kinds of edits, as `modeling_nas.apply_arch` reads them."""


def edits_of(model: PreTrainedModel, layout: Layout, subnet: SubnetConfig) -> dict[str, dict[str, object]]:
    """The edits that turn a stock model of the right depth into the subnetwork (see `modeling_nas.apply_arch`)."""
    arch: dict[str, dict[str, object]] = {section: {} for section in (*WEIGHT_EDITS, *MODULE_EDITS)}
    bare = model.base_model is model
    prefix = "" if bare else f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters(remove_duplicate=False):
        width, place = layout.values_at(subnet, name), layout.locate(name)
        if width is not None:
            new_name = layout.name_in_subnet(subnet, name)
            if layout.is_shared_by_first_layer(place):
                moved, origin = (n.removeprefix(prefix).rpartition(".")[0] for n in (new_name, name))
                arch["move"] |= {moved: origin} if moved != origin else {}
            rank, path = layout.shapes.rank(place, width), new_name.removeprefix(prefix).rpartition(".")[0]
            bits = layout.bits_of(subnet, place)
            if bits != FULL_PRECISION:
                arch["bits"][path] = bits
            if rank is not None:
                factors_of = layout.shapes.tensor_shapes(place, "weight", width, tuple(parameter.shape))
                outputs, inputs = factors_of["up.weight"][0], factors_of["down.weight"][1]
                if layout.shapes.is_embedding(place):
                    arch["embedding"][path] = [outputs, rank]
                else:
                    arch["low_rank"][path] = [inputs, outputs, rank]
                continue
            shape = layout.shapes.shape(place.axes, width, tuple(parameter.shape))
            if shape != tuple(parameter.shape):
                section = "shapes" if new_name.startswith(prefix) else "head_shapes"
                arch[section][new_name.removeprefix(prefix)] = list(shape)
    for number, positions in enumerate(layout.kept_positions(subnet)):
        stack, first = layout.family.stacks[number], f"{layout.family.stacks[number].layers}.0."
        new = layout.missing_in_first_layer(number, subnet)
        arch["like"] |= {first + path: first + other for path, other in new.items()}
        for index, position in enumerate(positions[:1] if layout.family.shared_layers else positions):
            width, start = subnet.layer_values(position), f"{stack.layers}.{index}."
            skips = layout.skips(number, width)
            arch["skip"] |= {start + path: what for path, what in skips.items()}
            pattern = AttentionPattern.parse(subnet.attention[position])
            if pattern is not None:
                arch["attention"][start + stack.attention_module] = pattern.to_list()
            arch["wrap"] |= {start + p: name for p, name in stack.mixins.items() if not is_under(p, skips)}
            for path, formulas in stack.attributes.items():
                if not is_under(path, skips):
                    values = {name: layout.shapes.attribute_value(f, width) for name, f in formulas.items()}
                    arch["attributes"][start + path] = values
    return {section: edits for section, edits in arch.items() if edits}

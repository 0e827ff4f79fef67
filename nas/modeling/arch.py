"""The edits that an exported config lists in ``nas_arch``: how a stock model becomes the subnetwork."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers.initialization import no_init_weights

from nas.modeling.modeling_nas import EDITS
from nas.modeling.module_kinds import KINDS
from nas.modeling.registration import stock_classes
from search_spaces import TASKS, Layout, SubnetConfig
from search_spaces.blueprint import LayerBlueprint
from search_spaces.family import Stack
from search_spaces.module_kinds import Skipped, SparseAttention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def edits_of(model: PreTrainedModel, layout: Layout, subnet: SubnetConfig) -> dict[str, dict[str, object]]:
    """The edits that turn a stock model of the right depth into the subnetwork (see `modeling_nas.apply_arch`)."""
    arch: dict[str, dict[str, object]] = {section: {} for section in EDITS}
    _add_weights(arch, model, layout, subnet)
    _add_kinds(arch, layout.blueprint(subnet).outside, "")
    if subnet.hidden_size != layout.parent.hidden_size:
        _add_other_heads(arch, model, layout, subnet)
    for number, positions in enumerate(layout.kept_positions(subnet)):
        stack, first_layer = layout.family.stacks[number], f"{layout.family.stacks[number].layers}.0."
        copies = layout.missing_in_first_layer(number, subnet)
        arch["like"] |= {first_layer + path: first_layer + other for path, other in copies.items()}
        for index, position in enumerate(positions[:1] if layout.family.shared_layers else positions):
            _add_layer(arch, layout, stack, layout.blueprint(subnet).layers[position], f"{stack.layers}.{index}.")
        present = _attention_weights(stack, [layout.blueprint(subnet).layers[position] for position in positions])
        arch["attention_weights"] |= {stack.layers: present} if present else {}
    for path, (own, stock) in layout.index_attributes(subnet).items():
        if own != stock:
            layer, _, name = path.rpartition(".")
            arch["attributes"][layer] = {**arch["attributes"].get(layer, {}), name: own}  # type: ignore[dict-item]
    return {section: edits for section, edits in arch.items() if edits}


def _add_weights(
    arch: dict[str, dict[str, object]], model: PreTrainedModel, layout: Layout, subnet: SubnetConfig
) -> None:
    """Adds what becomes of each parameter: where it moves, its shape, or the kinds of module that replace it."""
    prefix = _base_prefix(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        blueprint, location = layout.blueprint_at(subnet, name), layout.locate(name)
        if blueprint is None:
            continue
        new_name = layout.name_in_subnet(subnet, name)
        path = new_name.removeprefix(prefix).rpartition(".")[0]
        if layout.is_shared_by_first_layer(location):
            origin = name.removeprefix(prefix).rpartition(".")[0]
            arch["move"] |= {path: origin} if path != origin else {}
        full = tuple(parameter.shape)
        for kind in layout.shapes.kinds(location, blueprint):
            elastic, shapes = KINDS[type(kind)], layout.shapes.tensor_shapes(location, "weight", blueprint, full)
            if elastic.has_weights:
                arch[elastic.section][path] = elastic.describe(kind, shapes)
        if layout.shapes.low_rank(location, blueprint) is None:
            shape = layout.shapes.shape(location.axes, blueprint.sizes, full)
            _add_shape(arch, prefix, new_name, full, shape)


def _add_other_heads(
    arch: dict[str, dict[str, object]], model: PreTrainedModel, layout: Layout, subnet: SubnetConfig
) -> None:
    """Adds the shapes of weights that other heads of the family have, so that they fit a narrower residual stream."""
    for head in _other_heads(model, layout):
        for name, parameter in head.named_parameters(remove_duplicate=False):
            blueprint, location = layout.blueprint_at(subnet, name), layout.locate(name)
            if blueprint is not None and location.layer is None and not layout.shapes.kinds(location, blueprint):
                shape = layout.shapes.shape(location.axes, blueprint.sizes, tuple(parameter.shape))
                _add_shape(arch, _base_prefix(head), name, tuple(parameter.shape), shape)


def _other_heads(model: PreTrainedModel, layout: Layout) -> list[PreTrainedModel]:
    """Returns models without weights, with the parent's config and the heads of the family's other tasks."""
    import transformers

    autos = ("AutoModel", *(TASKS[task].auto_class for task in layout.family.tasks))
    classes = [each for auto in autos for each in stock_classes(getattr(transformers, auto), type(model.config))]
    with torch.device("meta"), torch.random.fork_rng(devices=[]), no_init_weights():
        return [each(copy.deepcopy(model.config)) for each in dict.fromkeys(classes) if each is not type(model)]


def _base_prefix(model: PreTrainedModel) -> str:
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def _add_shape(
    arch: dict[str, dict[str, object]], prefix: str, name: str, full: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    """Adds the lengths of a parameter that change; the others, such as the number of labels, stay the config's."""
    if shape != full:
        section = "shapes" if name.startswith(prefix) else "head_shapes"
        lengths = [length if length != before else None for length, before in zip(shape, full, strict=True)]
        arch[section].setdefault(name.removeprefix(prefix), lengths)


def _add_layer(
    arch: dict[str, dict[str, object]], layout: Layout, stack: Stack, blueprint: LayerBlueprint, start: str
) -> None:
    """Adds what becomes of the modules of a layer, apart from their weights."""
    _add_kinds(arch, blueprint, start)
    arch["wrap"] |= {start + path: name for path, name in stack.mixins.items() if not blueprint.skips(path)}
    for path, formulas in stack.attributes.items():
        if not blueprint.skips(path):
            values = {n: layout.shapes.attribute_value(f, blueprint.sizes) for n, f in formulas.items()}
            arch["attributes"][start + path] = values


def _add_kinds(arch: dict[str, dict[str, object]], blueprint: LayerBlueprint, start: str) -> None:
    """Adds the kinds of modules that replace no weights."""
    for path, kinds in blueprint.kinds.items():
        for kind in kinds:
            if not KINDS[type(kind)].has_weights:
                arch[KINDS[type(kind)].section][start + path] = KINDS[type(kind)].describe(kind, {})


def _attention_weights(stack: Stack, layers: Sequence[LayerBlueprint]) -> dict[str, list[bool]]:
    """Name of an output -> whether each layer has attention weights in it; without outputs that all layers have."""
    attends = [not any(layer.kind(path, Skipped) for path in stack.skips.get("attention", ())) for layer in layers]
    is_sparse = [layer.kind(stack.attention_module, SparseAttention) is not None for layer in layers]
    present = {"attentions": [own and not sparse for own, sparse in zip(attends, is_sparse, strict=True)]}
    present |= {"cross_attentions": attends} if stack.source_modules else {}
    return {name: has for name, has in present.items() if not all(has)}

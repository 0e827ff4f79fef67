"""An export of ours as a stock model again: what was cut is filled up with zeros, so that its outputs stay."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nas.modeling.modeling_nas import PREFIX
from nas.modeling.registration import TYPE_PREFIX, head_task
from search_spaces import InputError, Layout, SubnetConfig, family_of
from search_spaces.layout import update_config
from search_spaces.shapes import Rows
from search_spaces.stock_config import stock_config_update
from search_spaces.subnet import NUMERIC, SIZES
from search_spaces.validation import check_subnet

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

SUBNET = "subnet.json"
Weights = Mapping[str, torch.Tensor]


def is_export(config: PreTrainedConfig) -> bool:
    """Whether a config is that of an export whose layers differ; an export of equal layers has a stock config."""
    return bool(getattr(config, "nas_arch", None))


def unfolded_config(config: PreTrainedConfig, folder: str) -> PreTrainedConfig:
    """The smallest stock config that an export fits into.

    Args:
        config: Of the export.
        folder: The export, with its subnet.json.

    Raises:
        InputError: If the subnet.json is missing, or no stock model has the outputs of such a subnetwork.
    """
    full = _stock_config(config)
    layout = _layout(full)
    if layout.family.has_towers:
        raise InputError(refusal(folder, "it has two towers"))
    if layout.inputs.stages:
        raise InputError(refusal(folder, "it has stages of different widths"))
    subnet = _subnet(folder, len(layout.parent.layers))
    if subnet != SubnetConfig(subnet.layers, **_sizes(subnet)):
        raise InputError(refusal(folder, "its layers compute in another way (integers or sparse attention)"))
    for wide in _uniform(layout, subnet):
        update = stock_config_update(layout, wide)
        if update is not None and (config := _updated(full, layout, update, subnet)) is not None:
            return config
    raise InputError(refusal(folder, "no stock config has its sizes"))


def unfold(model: PreTrainedModel, config: PreTrainedConfig, folder: str) -> PreTrainedModel:
    """The stock model of `unfolded_config` with the weights of an export, and zeros elsewhere.

    Args:
        model: The export, with any head.
        config: From `unfolded_config`.
        folder: The export, with its subnet.json.
    """
    stock: Any = next(each for each in type(model).__mro__ if not each.__name__.startswith(PREFIX))
    labels = {"id2label": model.config.id2label, "label2id": model.config.label2id}
    own = copy.deepcopy(config)
    own.update(labels)
    with torch.random.fork_rng(devices=[]):
        unfolded = stock(own)
    layout = _layout(config)
    subnet, given = _subnet(folder, len(layout.parent.layers)), model.state_dict()
    parameters = {name for name, _ in unfolded.named_parameters(remove_duplicate=False)}
    state = {
        name: _filled(tensor, _given(name, given, layout), _rows(name, layout, subnet))
        if name in {*parameters, *given}
        else tensor
        for name, tensor in unfolded.state_dict().items()
    }
    unfolded.load_state_dict(state)
    unfolded.tie_weights()
    if model.can_generate():
        unfolded.generation_config = copy.deepcopy(model.generation_config)
    return unfolded.train(model.training)


def _layout(config: PreTrainedConfig) -> Layout:
    """The layout of a stock model with the head that its config names."""
    return Layout(config, head_task(config, family_of(config.model_type).of_task) or "")


def _stock_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The stock config with the sizes that an export was cut from."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    left_out = ("model_type", "nas_arch", "auto_map", "architectures")
    fields = {name: value for name, value in config.to_dict().items() if name not in left_out}
    stock = CONFIG_MAPPING[config.model_type.removeprefix(TYPE_PREFIX)].from_dict(fields)
    stock.architectures = [name.removeprefix(PREFIX) for name in config.architectures or ()]
    stock._name_or_path = config._name_or_path
    return stock


def _subnet(folder: str, layers: int) -> SubnetConfig:
    """The subnetwork of an export, with its layers numbered as they are there."""
    file = Path(folder, SUBNET)
    try:
        subnet = SubnetConfig.from_dict(json.loads(file.read_text())["subnet"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"an export must have its {SUBNET} to be searched again, but `{file}` cannot be read ({error}); copy the "
            "whole folder."
        ) from None
    return subnet.with_values(layers=range(layers)) if len(subnet.layers) == layers else subnet


def _sizes(subnet: SubnetConfig) -> dict[str, Any]:
    return {name: getattr(subnet, name) for name in (*NUMERIC, *SIZES)}


def _uniform(layout: Layout, subnet: SubnetConfig) -> Iterator[SubnetConfig]:
    """Subnetworks of equal layers that contain this one, the narrower ones first."""
    fixed = {name: getattr(subnet, name) for name in SIZES}
    heads = subnet.hidden_size // layout.head_dim
    parents = layout.parent_values[0]
    options = [sorted({max(getattr(subnet, name)), heads, parents[name]}) for name in NUMERIC]
    for values in sorted(product(*options), key=sum):
        if all(value >= max(getattr(subnet, name)) for name, value in zip(NUMERIC, values, strict=True)):
            try:
                yield SubnetConfig.uniform(subnet.layers, **dict(zip(NUMERIC, values, strict=True)), **fixed)
            except InputError:
                continue


def _updated(
    full: PreTrainedConfig, layout: Layout, update: Mapping[str, Any], subnet: SubnetConfig
) -> PreTrainedConfig | None:
    """The config with these sizes; None if its model does not contain the subnetwork."""
    config = copy.deepcopy(full)
    update_config(config, layout.family, update)
    try:
        check_subnet(_layout(config), subnet)
    except InputError:
        return None
    return config


def _rows(name: str, layout: Layout, subnet: SubnetConfig) -> tuple[Rows, ...]:
    """Where the entries of a parameter of an export lie in that of the stock model."""
    blueprint, location = layout.blueprint_at(subnet, name), layout.locate(name)
    if blueprint is None:
        return ()
    full = layout.full_sizes[location.stack or 0]
    return tuple(layout.shapes.active_rows(axis, blueprint.sizes, full) for axis in location.axes)


def _given(name: str, weights: Weights, layout: Layout) -> torch.Tensor | None:
    """A parameter of an export, the product of two factors where it is low-rank; None if the export has none."""
    module, _, kind = name.rpartition(".")
    if f"{module}.up.weight" not in weights:
        return weights.get(name)
    if kind != "weight":
        return weights.get(f"{module}.up.{kind}")
    up, down = weights[f"{module}.up.weight"], weights[f"{module}.down.weight"]
    return (up @ down).T if layout.family.conv1d else up @ down


def _filled(tensor: torch.Tensor, given: torch.Tensor | None, rows: tuple[Rows, ...]) -> torch.Tensor:
    """A tensor of zeros with the given entries in their rows."""
    filled = torch.zeros_like(tensor)
    if given is not None:
        index = tuple(each if isinstance(each, slice) else torch.as_tensor(each) for each in rows[: tensor.ndim])
        filled[index] = given.to(tensor)
    return filled


def refusal(folder: str, why: str) -> str:
    """What to say of an export that cannot be searched again."""
    return (
        f"an export must be a stock model with zeros in place of what was cut to be searched again, but `{folder}` is "
        f"not: {why}; export another subnetwork, or search its parent."
    )

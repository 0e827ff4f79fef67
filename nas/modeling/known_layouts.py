"""Known layouts: finds the table of a model type that has none, but whose modules are laid out as a family's.

What is compared are names and shapes on the meta device. Whether the model also computes alike, only the laws of
slicing can say: `nas.stages.layout_proof` tests them before anything is trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nas.modeling.registration import register_family, stock_classes
from nas.modeling.unfolded import TYPE_PREFIX
from search_spaces import ADOPTED, FAMILIES, TASKS, Family, InputError, Layout
from search_spaces.dimensions import DEPTHS, DIMENSIONS
from search_spaces.family import Stack

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

COMPARED_LAYERS = 2
SMALL_DEPTH, SMALL_HIDDEN = 4, 48
SMALL = {"hidden": SMALL_HIDDEN, "heads": 4, "kv_heads": 2, "ffn": 96}
"""Sizes of a small model: axis of weights -> units."""
SMALL_OTHERS = {
    "embedding_size": SMALL_HIDDEN,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "head_dim": 12,
    "image_size": 16,
    "patch_size": 4,
    "sliding_window": 5,
    "initializer_range": 0.1,
}
"""Sizes of a small model: fields of Hugging Face. Large weights make attention visible in the outputs."""
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


@cache
def adopt(model_type: str) -> Family | None:
    """The family of a model type; one without a table gets that of the family that it is laid out as.

    If several are, the one whose table knows most of its modules, for most tasks.

    Args:
        model_type: Of a stock model.

    Returns:
        The family, in `FAMILIES` or now in `ADOPTED`; None if the type is unknown or laid out as no family.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING or model_type.startswith(TYPE_PREFIX):
        return None
    config_class = CONFIG_MAPPING[model_type]
    model_type = config_class.model_type  # some names stand for another type
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    candidates = [found for family in FAMILIES.values() if (found := _laid_out_as(family, config_class)) is not None]
    if not candidates:
        return None
    best = min(candidates, key=lambda family: (bool(family.hidden_fixed_reason), -len(family.tasks)))
    ADOPTED[model_type] = best
    register_family(best)
    return best


def adopt_export(folder: Any) -> None:
    """Adopts the model type of an export in a folder, so that its own classes are registered before it loads."""
    file = Path(str(folder), "config.json")
    if file.is_file():
        try:
            model_type = str(json.loads(file.read_text()).get("model_type", ""))
        except (OSError, ValueError, AttributeError):
            return  # transformers says what is wrong with it
        if model_type.startswith(TYPE_PREFIX):
            adopt(model_type.removeprefix(TYPE_PREFIX))


def small_model(family: Family, task: str) -> PreTrainedModel:
    """A tiny random model of a family: four layers, four heads, hidden size 48."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[family.model_type]
    default = config_class()
    sizes = getattr(default, family.sub_config) if family.sub_config else default
    values: dict[str, float] = {f: SMALL_DEPTH for name in DEPTHS for f in family.names_in_config(name)}
    for axis, size in SMALL.items():
        names = [name for name, dimension in DIMENSIONS.items() if dimension.axes[:1] == (axis,)]
        values |= {field: size for name in names for field in family.names_in_config(name)}
    values |= SMALL_OTHERS | dict.fromkeys(family.equal_to_hidden_size, SMALL_HIDDEN)
    values |= {name: number for number, name in enumerate(TOKENS) if getattr(sizes, name, None) is not None}
    values = {name: value for name, value in values.items() if getattr(sizes, name, None) is not None}
    values |= {"pad_token_id": 0} if hasattr(sizes, "pad_token_id") else {}
    config = config_class(**({family.sub_config: values} if family.sub_config else values))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, TASKS[task].auto_class).from_config(config)
    return model.eval()


def _laid_out_as(family: Family, config_class: type[PreTrainedConfig]) -> Family | None:
    """The table of a family for another config, with the tasks for which the modules are as in the table."""
    from transformers.models.auto import modeling_auto

    model_type: str = config_class.model_type
    autos = {task: getattr(modeling_auto, TASKS[task].auto_class) for task in family.tasks}
    config = _shallow(family, config_class)
    if config is None or not stock_classes(modeling_auto.AutoModel, config_class):
        return None
    candidate = replace(family, model_type=model_type, alike=family.model_type)
    ADOPTED[model_type] = candidate
    try:
        layout = Layout(config)
        models = {
            task: _empty_model(auto, config) for task, auto in autos.items() if stock_classes(auto, config_class)
        }
        fitting = {task: model for task, model in models.items() if _fits(layout, model)}
        unknown = sorted(set[str]().union(*(_unknown_outside(layout, model) for model in fitting.values())))
    except (InputError, AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError, ImportError):
        return None  # the config or its model is another
    finally:
        del ADOPTED[model_type]
    stacks = tuple(_with_own_attention(stack, next(iter(fitting.values()), None)) for stack in family.stacks)
    why = f"the table of `{family.model_type}` does not know `{unknown[0]}`" if unknown else family.hidden_fixed_reason
    return replace(candidate, tasks=tuple(fitting), stacks=stacks, hidden_fixed_reason=why) if fitting else None


def _shallow(family: Family, config_class: type[PreTrainedConfig]) -> PreTrainedConfig | None:
    """A default config with two layers; None if it lacks a name by which the family finds its layers."""
    try:
        config = config_class()
        sizes = getattr(config, family.sub_config) if family.sub_config else config
        for name in family.names_in_config("num_hidden_layers"):
            getattr(sizes, name)
            setattr(sizes, name, COMPARED_LAYERS)
        for name in family.per_layer_fields:
            if isinstance(values := getattr(sizes, name, None), list):
                setattr(sizes, name, values[:COMPARED_LAYERS])
    except Exception:  # a config may compute anything from its defaults, and fail
        return None
    return config


def _empty_model(auto: Any, config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config)
    return model


def _fits(layout: Layout, model: PreTrainedModel) -> bool:
    """Whether the layers have what the table needs, and each parameter that it knows has the shape that it says."""
    if any(not _has_modules(model.base_model.get_submodule(s.layers), s) for s in layout.family.stacks):
        return False
    for name, parameter in model.named_parameters():
        location, shape = layout.locate(name), tuple(parameter.shape)
        sizes = layout.full_sizes[location.stack or 0]
        if location.axes and layout.shapes.shape(location.axes, sizes, shape) != shape:
            return False
        if not location.axes and location.stack is not None:
            return False
    return True


def _with_own_attention(stack: Stack, model: PreTrainedModel | None) -> Stack:
    """The stack without sparse attention, if its attention does not use transformers' attention interface."""
    if model is None or not stack.attention_module:
        return stack
    attention = model.base_model.get_submodule(f"{stack.layers}.0.{stack.attention_module}")
    return stack if hasattr(attention, "config") else replace(stack, attention_module="")


def _unknown_outside(layout: Layout, model: PreTrainedModel) -> set[str]:
    """Parameters outside the layers that depend on the hidden size, but are not in the table."""
    named = ((name, parameter.shape) for name, parameter in model.named_parameters())
    return {name for name, shape in named if not layout.locate(name).axes and layout.sizes.hidden_size in shape}


def _has_modules(layers: Any, stack: Stack) -> bool:
    """Whether a layer has what the table replaces, changes or needs: linear modules of both blocks and attributes."""
    layer = layers[COMPARED_LAYERS - 1]
    found = {name.rpartition(".")[0] for name, _ in layer.named_parameters()}
    blocks = [{path for path, axes in stack.modules.items() if axis in axes} for axis in ("heads", "ffn")]
    return all(paths & found for paths in blocks) and all(
        _exists(layer, path, names) for path, names in _needed(stack)
    )


def _needed(stack: Stack) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Path below a layer -> the attributes that it must have."""
    for path, attributes in stack.attributes.items():
        if not path.endswith("config"):
            yield path, tuple(attributes)
    for modules in stack.skips.values():
        yield from ((path, ()) for path in modules)
    if stack.attention_module:
        yield stack.attention_module, ()


def _exists(layer: Any, path: str, attributes: tuple[str, ...]) -> bool:
    try:
        module = layer.get_submodule(path)
    except AttributeError:
        return False
    return all(hasattr(module, name) for name in attributes)

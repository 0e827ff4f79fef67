"""Known layouts: finds the table of a model type that has none, but whose modules are laid out as a family's.

What is compared are names and shapes on the meta device. Whether the model also computes alike, only the laws of
slicing can say: `nas.stages.layout_proof` tests them before anything is trained.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nas.modeling.registration import TYPE_PREFIX, register_family, stock_classes
from search_spaces import ADOPTED, FAMILIES, TASKS, Family, InputError, Layout
from search_spaces.dimensions import DEPTHS, DIMENSIONS
from search_spaces.errors import short_error
from search_spaces.family import Stack

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

COMPARED_LAYERS = 2
SMALL_DEPTH, SMALL_HIDDEN = 4, 64
SMALL = {"hidden": SMALL_HIDDEN, "heads": 4, "kv_heads": 2, "ffn": 96}
"""Sizes of a small model: axis of weights -> units."""
SMALL_OTHERS = {
    "embedding_size": SMALL_HIDDEN,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "head_dim": SMALL_HIDDEN // SMALL["heads"],
    "image_size": 16,
    "patch_size": 4,
    "sliding_window": 5,
    "mlp_ratio": 2,
    "initializer_range": 0.1,
}
"""Sizes of a small model: fields of Hugging Face. Large weights make attention visible in the outputs."""
MOST_SMALL = 50_000_000
"""Parameters of the largest small model: some parts have sizes that are not named as others'."""
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
SMALL_SECTIONS = [2, 3, 3]
"""Pairs of channels of a head with rotary positions in time, height and width, in a model that reads images too."""
BODY_TASKS = {True: ("feature-extraction", "sentence-similarity"), False: ("image-feature-extraction",)}
"""Whether a model reads text -> the tasks of a model without a head."""


@cache
def adopt(model_type: str) -> Family | None:
    """The family of a model type; one without a table gets that of the family that it is laid out as.

    If several are, one for tasks of a recipe, whose table knows most of its modules, for most tasks.

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
    best = min(candidates, key=lambda each: (not each.runs, len(each.fixed_reasons), -len(each.tasks)))
    ADOPTED[model_type] = best
    register_family(best)
    return best


def is_model_type(name: str) -> bool:
    """Whether a name is a model type of transformers, not a model."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return name in CONFIG_MAPPING and not name.startswith(TYPE_PREFIX)


def nearest_layout(model_type: str) -> str:
    """Which table is nearest to a type that is laid out as none, and what of its layers that table does not know."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        model = _empty_model(modeling_auto.AutoModel, CONFIG_MAPPING[model_type])
    except Exception as error:  # a config or model of transformers that does not build
        return f"no model is built from its default config ({short_error(error)})"
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module)]
    layers = [(each[-1], found) for each in lists if (found := _with_parameters(each[-1]))]
    if not layers:
        return "it has no list of layers"
    tables = [(name, stack) for name, family in FAMILIES.items() for stack in family.stacks]
    pairs = ((layer, found, *table) for layer, found in layers for table in tables)
    layer, found, nearest, stack = max(pairs, key=lambda pair: _nearness(pair[1], pair[3]))
    return f"its layers are nearest to those of `{nearest}`, whose table {_misfit(layer, found, stack)}"


def _with_parameters(layer: Any) -> set[str]:
    """Paths of the modules of a layer that have parameters, and of its own parameters."""
    return {name.rpartition(".")[0] or name for name, _ in layer.named_parameters()}


def _nearness(found: set[str], stack: Stack) -> tuple[float, int]:
    """How much the modules of a layer are those of a table; the greatest is the nearest."""
    table = {*stack.modules}
    return len(found & table) / len(found | table), -len(found - table)


def _misfit(layer: Any, found: set[str], stack: Stack) -> str:
    """What keeps a table from a layer, by the names of its modules and of their attributes."""
    needed = [(path, name) for path, names in _needed(stack) for name in names]
    lacking = {f"{path}.{name}" for path, name in needed if not _exists(layer, path, (name,))}
    if unknown := found - stack.modules.keys():
        return f"does not know {_some(unknown)}"
    if expected := stack.modules.keys() - found or lacking:
        return f"expects {_some(expected)}, which they lack"
    return "has the same modules in a layer, but elsewhere or in other sizes"


def _some(paths: Iterable[str]) -> str:
    return ", ".join(f"`{path}`" for path in sorted(paths)[:4])


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
    """A tiny random model of a family: four layers, four heads, hidden size 64, and so are the parts that it lacks.

    Raises:
        InputError: If its config does not make it small, or does not build with other sizes.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    auto: Any = getattr(transformers, TASKS[task].auto_class)
    refusal = f"no tiny model of `{family.model_type}` could be made:"
    try:
        config = CONFIG_MAPPING[family.model_type](**_small_values(CONFIG_MAPPING[family.model_type](), family))
        with torch.device("meta"):
            parameters = auto.from_config(config).num_parameters()
    except Exception as error:  # whatever a config or model of transformers does with other sizes
        raise InputError(f"{refusal} {short_error(error).rstrip('.')}.") from error
    if parameters > MOST_SMALL:
        raise InputError(f"{refusal} it still has {parameters:,} parameters.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = auto.from_config(config)
    return model.eval()


def _small_values(default: PreTrainedConfig, family: Family) -> dict[str, Any]:
    """Arguments that make a config small, those of its parts included."""
    values: dict[str, Any] = dict.fromkeys(_names((family, *FAMILIES.values()), DEPTHS), SMALL_DEPTH)
    for axis, size in SMALL.items():
        names = [name for name, dimension in DIMENSIONS.items() if dimension.axes[:1] == (axis,)]
        values |= dict.fromkeys(_names((family, *FAMILIES.values()), names), size)
    values |= SMALL_OTHERS | dict.fromkeys(family.equal_to_hidden_size, SMALL_HIDDEN)
    values |= {name: number for number, name in enumerate(TOKENS)}
    before = {name: getattr(default, name, None) for name in values}
    values = {name: type(old)(values[name]) for name, old in before.items() if isinstance(old, int | float)}
    rope = getattr(default, "rope_parameters", None) or {}
    values |= {"rope_parameters": {**rope, "mrope_section": SMALL_SECTIONS}} if "rope_type" in rope else {}
    values |= {"pad_token_id": 0} if hasattr(default, "pad_token_id") else {}
    for name, part in _parts(default).items():
        values[name] = {**_small_values(part, family), "model_type": part.model_type}
    return values


def _names(families: Iterable[Family], dimensions: Iterable[str]) -> list[str]:
    """What configs call dimensions."""
    return [field for family in families for name in dimensions for field in family.names_in_config(name)]


def _parts(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    """Field of a config -> the config of a part of the model."""
    found = {name: getattr(config, name, None) for name in config.sub_configs}
    return {name: part for name, part in found.items() if hasattr(part, "model_type")}


def _laid_out_as(family: Family, config_class: Any) -> Family | None:
    """The table of a family for another config, with the tasks for which the modules are as in the table.

    They are in the whole model or, if its config has parts, in one of them.
    """
    config = _shallow(config_class)
    if config is None:
        return None
    alone = _alone(family)
    parts = [(alone, part) for part in _parts(config)] if len(family.stacks) == 1 else []
    tables = [(family, ""), *([(alone, "")] if family.sub_config else []), *parts]
    return next((found for found in (_in_part(table, config, part) for table, part in tables) if found), None)


def _alone(family: Family) -> Family:
    """The table of a family that is a part of a model, as one of that part on its own."""
    if not family.sub_config:
        return family
    start = family.stacks[0].layers.partition(".")[0] + "."

    def without(paths: Mapping[str, Any]) -> dict[str, Any]:
        return {path.removeprefix(start): value for path, value in paths.items()}

    return replace(
        family,
        sub_config="",
        stacks=tuple(replace(stack, layers=stack.layers.removeprefix(start)) for stack in family.stacks),
        outside_layers=without(family.outside_layers),
        runs_on=without(family.runs_on),
        unused_modules={},
    )


def _in_part(family: Family, config: PreTrainedConfig, part: str) -> Family | None:
    """The table of a family for one part of a model, by its field in the config; "": for the whole one."""
    from transformers.models.auto import modeling_auto

    sub_config = part or family.sub_config
    config_class: Any = type(config)
    sizes = getattr(config, sub_config, None) if sub_config else config
    names = [*family.names_in_config("num_hidden_layers"), *(["num_patches"] if family.cuts_patches else [])]
    has_sizes = all(hasattr(sizes, name) for name in names)
    if not has_sizes or not stock_classes(modeling_auto.AutoModel, config_class):
        return None
    candidate = replace(
        family, model_type=config.model_type, alike=family.model_type, sub_config=sub_config, of_task={}
    )
    try:
        body = _empty_model(modeling_auto.AutoModel, config_class)
        candidate = _below(candidate, body, part) if part else candidate
        ADOPTED[config.model_type] = candidate
        layout = Layout(config)
        autos = _autos(family, config_class, part) if _fits(layout, body) else {}
        models = {task: _empty_model(auto, config_class) for task, auto in autos.items()}
        fitting = {task: model for task, model in models.items() if _fits(layout, model)}
        unknown = sorted(set[str]().union(*(_unknown_outside(layout, model) for model in fitting.values())))
    except (InputError, AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError, ImportError):
        return None  # the config or its model is another
    finally:
        ADOPTED.pop(config.model_type, None)
    if not fitting:
        return None
    if candidate.head_dim_in_config and not _sets_head_dim(candidate, config, layout.head_dim):
        candidate = replace(candidate, head_dim_in_config=False)
    stacks = tuple(_with_own_attention(stack, body) for stack in candidate.stacks)
    why = {"hidden_size": f"the table of `{family.model_type}` does not know `{unknown[0]}`"} if unknown else {}
    fixed = {**family.fixed_reasons, **why}
    return replace(candidate, tasks=tuple(fitting), stacks=stacks, fixed_reasons=fixed)


def _sets_head_dim(family: Family, config: PreTrainedConfig, head_dim: int) -> bool:
    """Whether a config of this type can set the channels of a head: the modules have the shapes of other ones too."""
    from transformers.models.auto import modeling_auto

    other = copy.deepcopy(config)
    (getattr(other, family.sub_config) if family.sub_config else other).head_dim = 2 * head_dim
    ADOPTED[config.model_type] = family
    try:
        with torch.device("meta"):
            return _fits(Layout(other), modeling_auto.AutoModel.from_config(other))
    except (InputError, ValueError, RuntimeError, AttributeError):
        return False
    finally:
        del ADOPTED[config.model_type]


def _autos(family: Family, config_class: Any, part: str) -> dict[str, Any]:
    """Tasks that a type may have with the table of a family -> their auto classes, if these have a model of it.

    A whole model without a head may have the tasks of its kind of inputs; one with several parts those of text.
    """
    from transformers.models.auto import modeling_auto

    config = _shallow(config_class)
    sizes = getattr(config, part) if part else config
    reads_text = hasattr(sizes, "vocab_size") and not hasattr(sizes, "patch_size")
    tasks = [task for task in family.tasks if TASKS[task].reads_text == reads_text]
    reads_waves = hasattr(sizes, "conv_stride")
    if len(family.stacks) == 1 and not reads_waves and (reads_text or (not part and hasattr(sizes, "image_size"))):
        tasks += [task for task in BODY_TASKS[reads_text] if task not in tasks]
    autos = {task: getattr(modeling_auto, TASKS[task].auto_class) for task in tasks}
    return {task: auto for task, auto in autos.items() if stock_classes(auto, config_class)}


def _below(family: Family, model: PreTrainedModel, part: str) -> Family:
    """The table of a family with the paths that it has in one part of a model.

    Raises:
        AttributeError: If the part has no layers where the family has them.
    """
    kind = type(getattr(model.config, part))
    roots = [path for path, module in model.named_modules() if path and type(getattr(module, "config", None)) is kind]
    root = next((path for path in roots if _has_module(model.get_submodule(path), family.stacks[0].layers)), "-")
    inside = [name.rpartition(".")[0] for name, _ in model.named_parameters()]
    stacks = tuple(replace(stack, layers=f"{root}.{stack.layers}") for stack in family.stacks)

    def placed(paths: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in paths.items():
            full = [path for path in inside if f".{path}".endswith(f".{key}")]
            found |= dict.fromkeys([path for path in full if path.startswith(f"{root}.")] if full else [key], value)
        return found

    outside = placed(family.outside_layers)
    embedding = next(iter(placed({family.embedding: ()})), "") if family.embedding else ""
    return replace(family, stacks=stacks, outside_layers=outside, runs_on=placed(family.runs_on), embedding=embedding)


def _has_module(root: Any, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True


@lru_cache(16)
def _shallow(config_class: Any) -> PreTrainedConfig | None:
    """A default config with two layers in each stack; None if there is no default."""
    try:
        config = config_class()
        for each in (config, *_parts(config).values()):
            _make_shallow(each)
    except Exception:  # a config may compute anything from its defaults, and fail
        return None
    return config


def _make_shallow(config: PreTrainedConfig) -> None:
    """Leaves a config two layers of each stack."""
    depths = {name for name in _names(FAMILIES.values(), ("num_hidden_layers",)) if getattr(config, name, None)}
    for name in depths:
        setattr(config, name, COMPARED_LAYERS)
    for name in {name for family in FAMILIES.values() for name in family.per_layer_fields}:
        if isinstance(values := getattr(config, name, None), list):
            setattr(config, name, values[:COMPARED_LAYERS])


@lru_cache(16)
def _empty_model(auto: Any, config_class: Any) -> PreTrainedModel:
    """A model without storage of a shallow default config."""
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(_shallow(config_class))
    return model


def _fits(layout: Layout, model: PreTrainedModel) -> bool:
    """Whether the layers have what the table needs, and each parameter has the shape that it says.

    A parameter of a layer that the table does not know must have none of the sizes that may vary.
    """
    if any(not _has_modules(model.base_model.get_submodule(s.layers), s) for s in layout.family.stacks):
        return False
    for name, parameter in model.named_parameters():
        location, shape = layout.locate(name), tuple(parameter.shape)
        sizes = layout.full_sizes[location.stack or 0]
        if location.axes and layout.shapes.shape(location.axes, sizes, shape) != shape:
            return False
        if not location.axes and location.stack is not None and {*shape} & _widths(layout, location.stack):
            return False
    return True


def _widths(layout: Layout, stack: int) -> set[int]:
    """Sizes of a layer that may vary: a parameter without them is the same in every subnetwork."""
    sizes = {axis: n for axis, n in layout.full_sizes[stack].items() if axis in layout.family.axes}
    return {*sizes.values(), *(layout.shapes.size(axis, sizes) for axis in sizes)}  # type: ignore[arg-type]


def _with_own_attention(stack: Stack, model: PreTrainedModel) -> Stack:
    """The stack without sparse attention, if its attention does not use transformers' attention interface."""
    if not stack.attention_module:
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
    return _has_module(layer, path) and all(hasattr(layer.get_submodule(path), name) for name in attributes)

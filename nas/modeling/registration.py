"""Registers the classes of exported subnetworks with transformers, so that they load without ``trust_remote_code``."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from search_spaces import FAMILIES, TASKS, Family, family_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedConfig, PreTrainedModel


TYPE_PREFIX = "nas_"
"""Of the model types of exports whose layers differ."""


@cache
def register() -> None:
    """Registers config and models of every family with the auto classes; called before `AutoConfig` loads a config."""
    for family in FAMILIES.values():
        register_family(family)


def register_family(family: Family) -> None:
    """Registers the classes of exports of one family: its config, and a model for each of its tasks."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

    from nas.modeling import modeling_nas

    stock = CONFIG_MAPPING[family.model_type]
    config = modeling_nas.counterpart(stock)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    config.register_for_auto_class()
    for auto_class in dict.fromkeys(("AutoModel", *(TASKS[task].auto_class for task in family.all_tasks))):
        auto = getattr(modeling_auto, auto_class)
        model = modeling_nas.counterpart(stock_classes(auto, stock)[0])
        auto.register(config, model, exist_ok=True)
        model.register_for_auto_class(auto_class)


def stock_classes(auto: Any, config: type) -> tuple[type, ...]:
    """Returns the model classes of an auto class for a config class: none, one, or two as for DeiT."""
    if config not in auto._model_mapping:
        return ()
    classes = auto._model_mapping[config]
    return tuple(classes) if isinstance(classes, list | tuple) else (classes,)


def task_with_own_stacks(model: PreTrainedModel) -> str:
    """The task whose models have other stacks than the table of their type says, if this is one; else empty."""
    from transformers.models.auto import modeling_auto

    for task in family_of(model.config.model_type).of_task:
        classes = stock_classes(getattr(modeling_auto, TASKS[task].auto_class), type(model.config))
        if isinstance(model, classes):
            return task
    return ""


def head_task(config: PreTrainedConfig, tasks: Iterable[str]) -> str | None:
    """Returns the first of some tasks of which a model has the head, by the classes that its config names."""
    import transformers

    for task in tasks:
        heads = {head.__name__ for head in stock_classes(getattr(transformers, TASKS[task].auto_class), type(config))}
        if heads & {*(config.architectures or ())} and TASKS[task].default_metric is not None:
            return task
    return None

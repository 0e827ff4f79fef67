"""Checks between the fields of a recipe."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from nas.recipe.objectives import COSTS, METRICS, OF_WORKLOAD, RANGES, Bound, cost_name, is_cost
from nas.recipe.text import HARNESS, shortened
from search_spaces import TASKS, InputError
from search_spaces.errors import did_you_mean

if TYPE_CHECKING:
    from nas.recipe.schema import Recipe

OPTUNA_SAMPLERS = (
    "BruteForceSampler",
    "GPSampler",
    "NSGAIIISampler",
    "NSGAIISampler",
    "QMCSampler",
    "RandomSampler",
    "TPESampler",
)
BLOCK_SEARCH = "BlockSearch"
SAMPLERS = ("SurrogateSampler", BLOCK_SEARCH, *OPTUNA_SAMPLERS)
"""Our samplers, and those of Optuna for several objectives."""

STORAGES = ("postgresql", "mysql", "sqlite", "grpc")

TASK_NAMES = tuple(name for name, task in TASKS.items() if task.default_metric is not None)
"""Values of ``task.type``."""

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


def check_workloads(recipe: Recipe) -> None:
    """Checks the task and the names of the workloads, on which defaults depend.

    Raises:
        InputError: With the first error.
    """
    if recipe.task.type not in TASK_NAMES:
        hint = did_you_mean(recipe.task.type, TASK_NAMES)
        raise InputError(f"`task.type` must be a supported task, but got `{recipe.task.type}`; {hint}.")
    if recipe.workloads and "workload" in recipe.model_fields_set:
        raise InputError("`workload` is the short form of one of `workloads`, but both are given; leave one out.")
    for name in recipe.workloads:
        if not _IDENTIFIER.fullmatch(name):
            raise InputError(f"`workloads` must have identifiers as names, but got `{name[:40]}`; rename it.")


def check_fields(recipe: Recipe) -> None:
    """Checks a recipe with its defaults.

    Raises:
        InputError: With the first error.
    """
    for check in (_check_metrics, _check_values, _check_objectives, check_constraints, _check_search):
        check(recipe)


def _check_metrics(recipe: Recipe) -> None:
    task = recipe.task
    if task.retrieval is not None and task.type != "sentence-similarity":
        raise InputError(f"`task.retrieval` is for sentence-similarity, but `task.type` is {task.type}; leave it out.")
    for name in task.metrics:
        if not _IDENTIFIER.fullmatch(name) or name in COSTS:
            raise InputError(
                f"`task.metrics` must have identifiers as names, and none of a cost, but got `{name}`; rename it."
            )
    asked = [name for name, source in task.metrics.items() if source.startswith(HARNESS)]
    if asked and task.type != "text-generation":
        raise InputError(
            f"tasks of lm-eval are for text-generation, but `task.type` is {task.type}; leave out "
            f"`task.metrics.{asked[0]}`."
        )


def _check_values(recipe: Recipe) -> None:
    """Objectives and constraints name metrics and costs that there are."""
    known = recipe.directions
    for section, names in (("objectives", recipe.objectives), ("constraints", recipe.constraints)):
        for name in (name for name in names if name not in known):
            if name in OF_WORKLOAD:
                choices = ", ".join(f"`{cost_name(name, workload)}`" for workload in recipe.workloads)
                raise InputError(f"`{section}.{name}` must name one of several workloads; choose {choices}.")
            raise InputError(f"`{section}.{name}` is not a metric or a cost; {did_you_mean(name, known)}.")


def _check_objectives(recipe: Recipe) -> None:
    for name, direction in recipe.objectives.items():
        if direction != (known := recipe.directions[name] or direction):
            raise InputError(f"`objectives.{name}` must be `{known}`, but got `{direction}`.")
    if len({is_cost(name) for name in recipe.objectives}) < 2:
        raise InputError(
            f"`objectives` must hold a metric ({', '.join(METRICS)}) and a cost ({', '.join(COSTS)}), "
            f"but got {list(recipe.objectives)}."
        )


def check_constraints(recipe: Recipe) -> None:
    """Raises InputError for a constraint that is no bound, or that no value can meet."""
    for name, text in recipe.constraints.items():
        try:
            bound = Bound.parse(text)
        except InputError as error:
            raise InputError(f"`constraints.{name}`: {error}") from None
        if name not in recipe.task.metrics and not bound.is_possible(name):
            least, greatest = RANGES.get(name, (0.0, math.inf))
            raise InputError(
                f"`constraints.{name}` must be a bound that a value between {least:g} and {greatest:g} meets, but "
                f"got `{text}`."
            )


def _check_search(recipe: Recipe) -> None:
    search, url = recipe.search, recipe.search.storage
    if ":" not in search.sampler and search.sampler not in SAMPLERS:
        raise InputError(
            "`search.sampler` must name a sampler for several objectives or an OptunaHub `package:Class`, but got "
            f"`{search.sampler}`; {did_you_mean(search.sampler, SAMPLERS)}."
        )
    minimized = [n for n, direction in recipe.objectives.items() if is_cost(n) and direction == "minimize"]
    if search.sampler == BLOCK_SEARCH and not minimized:
        raise InputError(
            f"`search.sampler: BlockSearch` needs a cost to minimize, but got {list(recipe.objectives)}; add one."
        )
    if search.minutes is not None and search.hours is not None:
        raise InputError(
            "`search.minutes` and `search.hours` are one bound, but both are given "
            f"({search.minutes:g} and {search.hours:g}); leave one out."
        )
    if url is not None and ("://" not in url or url.partition("://")[0].partition("+")[0] not in STORAGES):
        raise InputError(
            f"`search.storage` must be a URL that begins with {', '.join(f'{s}://' for s in STORAGES)}, but got "
            f"`{shortened(url)}`; omit it to keep the study in the run's folder."
        )

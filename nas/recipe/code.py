"""Keys of a recipe that name code: functions of Python files, metrics, samplers of OptunaHub."""

from __future__ import annotations

from nas.recipe.schema import TRAININGS, Recipe
from nas.recipe.text import split_source


def code_keys(recipe: Recipe) -> list[str]:
    """Dotted keys whose values are run as code; a recipe without any runs none."""
    sources = {"task.train": recipe.task.train, "task.test": recipe.task.test}
    keys = [key for key, source in sources.items() if split_source(source)[0].endswith(".py")]
    keys += [f"task.metrics.{name}" for name in recipe.task.metrics]
    keys += [f"{name}.augment" for name in TRAININGS if getattr(recipe, name).augment is not None]
    return [*keys, *(["search.sampler"] if ":" in recipe.search.sampler else [])]

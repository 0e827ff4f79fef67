"""Keys of a recipe that name code: functions of Python files, metrics, samplers of OptunaHub, code of the model."""

from __future__ import annotations

from nas.recipe.schema import TRAININGS, Recipe
from nas.recipe.text import split_source


def code_keys(recipe: Recipe) -> list[str]:
    """Dotted keys whose values are run as code; a recipe without any runs none."""
    sources = {f"task.{name}": getattr(recipe.task, name) for name in ("train", "test", "validation")}
    keys = [key for key, source in sources.items() if source and split_source(source)[0].endswith(".py")]
    keys += ["trust_remote_code"] if recipe.trust_remote_code else []
    keys += [f"task.metrics.{name}" for name in recipe.task.metrics]
    keys += [f"{name}.augment" for name in TRAININGS if getattr(recipe, name).augment is not None]
    return [*keys, *(["search.sampler"] if ":" in recipe.search.sampler else [])]

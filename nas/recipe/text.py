"""Reads a recipe: YAML and overrides become a mapping; a validation error becomes one line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from search_spaces import InputError
from search_spaces.errors import did_you_mean

PATHS = ("model", "task.train", "task.test", "search.sampler", "parent.augment", "supernet.augment", "profile.earlier")
"""Keys that may hold a local path. The values of ``task.metrics`` may be local paths too."""


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a YAML recipe, applies ``section.key=value`` overrides and makes local paths absolute.

    Raises:
        InputError: If the file is missing or not YAML, or an override cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"a recipe must be a YAML file, but there is no `{path}`; `nas init` writes one for a model.")
    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"a recipe must be YAML, but `{path}` is not: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise InputError(f"a recipe must be a mapping of sections, but `{path}` holds {type(data).__name__}.")
    return apply_overrides(_absolute_paths(data, "", path.parent), overrides)


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Applies ``section.key=value`` overrides in place, and returns the recipe.

    Raises:
        InputError: If one cannot be read.
    """
    for override in overrides:
        _override(data, override)
    return data


def _absolute_paths(value: Any, dotted: str, base: Path) -> Any:
    """The value of a key with local paths made absolute, so that the copy in a run does not depend on the folder."""
    if isinstance(value, dict):
        return {k: _absolute_paths(v, f"{dotted}.{k}" if dotted else k, base) for k, v in value.items()}
    is_path = dotted in PATHS or dotted.startswith("task.metrics.")
    if is_path and isinstance(value, list):
        return [absolute_source(source, base) if isinstance(source, str) else source for source in value]
    return absolute_source(value, base) if is_path and isinstance(value, str) else value


def absolute_source(source: str, base: Path) -> str:
    """A source with an absolute path if it is a local one, below ``base``; else unchanged."""
    path, _ = split_source(source, base)
    return f"{(base / path).resolve()}{source[len(path) :]}" if (base / path).exists() else source


def _override(data: dict[str, Any], override: str) -> None:
    """Applies one ``section.key=value`` in place."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise InputError(f"an override must read `section.key=value`, but got `{override}`.")
    *sections, key = dotted.split(".")
    target = data
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise InputError(
                f"an override must name a recipe key, but in `{dotted}`, `{section}` is a value, not a section."
            )
    try:
        target[key] = _absolute_paths(yaml.safe_load(text), dotted, Path.cwd())
    except yaml.YAMLError:
        raise InputError(f"the value of `{dotted}` must be YAML, but got `{text}`.") from None


def first_error(error: ValidationError, recipe: type[BaseModel]) -> str:
    """The first validation error as one line: the key, what is wrong, the value."""
    first = error.errors()[0]
    location = [part for part in first["loc"] if isinstance(part, str) and "[" not in part and part != "Space"]
    dotted = ".".join(location)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"`{dotted}` is not a recipe key; {did_you_mean(location[-1], _known_keys(recipe, location[:-1]))}."
    if first["type"] == "missing":
        return f"`{dotted}` is required, but the recipe does not have it."
    if isinstance(cause := first.get("ctx", {}).get("error"), InputError):
        return str(cause)
    return f"`{dotted}`: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})."


def _known_keys(recipe: type[BaseModel], sections: Sequence[str]) -> list[str]:
    """Keys of a section, from the types of the recipe's fields."""
    model: Any = recipe
    for section in sections:
        model = model.model_fields[section].annotation
        model = next((arg for arg in get_args(model) if hasattr(arg, "model_fields")), model)
    return list(model.model_fields) if hasattr(model, "model_fields") else [field.name for field in fields(model)]


def split_source(source: str, base: Path = Path()) -> tuple[str, str]:
    """Splits ``path:name`` at its last colon; not at one in a path, after a drive or in a slice (``train[:9]``)."""
    match = re.fullmatch(r"(.+):((?:[^:/\\\[\]]|\[[^\]]*\])*)", source)
    return (source, "") if match is None or (base / source).exists() else (match[1], match[2])

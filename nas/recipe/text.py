"""Reads a recipe: YAML and overrides become a mapping; a validation error becomes one line."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from nas.recipe import strict_yaml
from nas.recipe.secrets import without_secrets
from search_spaces import InputError
from search_spaces.errors import did_you_mean, short_error

PATHS = (
    *("model", "task.train", "task.test", "task.validation", "task.retrieval"),
    *("search.sampler", "parent.augment", "supernet.augment", "profile.earlier", "search.earlier"),
)
"""Keys that may hold a local path. The values of ``task.metrics`` may be local paths too."""

FREE_KEYS = "search.sampler_options"
"""What is below takes any value."""

HARNESS = "lm_eval:"
"""Start of the source of a metric that is a task of lm-eval."""

LONGEST_TEXT = 4000
"""Characters of one value; no file system has longer paths."""


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a YAML recipe, applies ``section.key=value`` overrides and makes local paths absolute.

    Raises:
        InputError: If the file is missing or not YAML, or an override cannot be read.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise InputError(
                f"a recipe must be a YAML file, but there is no `{path}`; `nas init` writes one for a model."
            )
        with path.open("rb") as file:
            text = file.read(strict_yaml.MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"a recipe must be a file that can be read, but `{shortened(str(path))}` cannot ({short_error(error)})."
        ) from None
    if len(text) > strict_yaml.MAX_BYTES:
        raise InputError(f"a recipe must have at most {strict_yaml.MAX_BYTES:,} bytes, but `{path}` has more.")
    try:
        data = strict_yaml.load(text)
    except InputError as error:
        raise InputError(f"a recipe must be YAML, but `{path}` is not: {error}.") from None
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
    if is_path(dotted) and isinstance(value, list):
        return [absolute_source(source, base) if isinstance(source, str) else source for source in value]
    return absolute_source(value, base) if is_path(dotted) and isinstance(value, str) else value


def is_path(dotted: str) -> bool:
    """Whether a key may hold a local path."""
    return dotted in PATHS or dotted.startswith("task.metrics.")


def is_moved(old: Any, new: Any) -> bool:
    """Whether a source is now at another place: the same name, and nothing at the old place any more."""
    if not (isinstance(old, str) and isinstance(new, str)):
        return False
    (before, part), (now, same_part) = (split_source(source.removeprefix(HARNESS)) for source in (old, new))
    paths = Path(before), Path(now)
    is_same = (paths[0].name, part) == (paths[1].name, same_part) and all(path.is_absolute() for path in paths)
    return is_same and _exists(paths[1]) and not _exists(paths[0])


def absolute_source(source: str, base: Path) -> str:
    """A source with an absolute path if it is a local one, below ``base``; else unchanged."""
    if source.startswith(HARNESS):
        named = source.removeprefix(HARNESS)
        is_file = split_source(named, base)[0].endswith((".yaml", ".yml"))
        return HARNESS + absolute_source(named, base) if is_file else source
    path, _ = split_source(source, base)
    return f"{(base / path).resolve()}{source[len(path) :]}" if path and _exists(base / path) else source


def _exists(path: Path) -> bool:
    """Whether a file or folder exists; a name that no file can have does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _override(data: dict[str, Any], override: str) -> None:
    """Applies one ``section.key=value`` in place."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise InputError(f"an override must read `section.key=value`, but got `{shortened(override)}`.")
    *sections, key = dotted.split(".")
    target = data
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise InputError(
                f"an override must name a recipe key, but in `{shortened(dotted)}`, `{shortened(section)}` is a "
                "value, not a section."
            )
    is_lower_bound = sections == ["constraints"] and text.lstrip().startswith(
        ">"
    )  # which YAML takes for a folded text
    try:
        value = text if is_lower_bound else strict_yaml.load(text)
    except InputError as error:
        raise InputError(f"the value of `{dotted}` must be YAML, but got `{shortened(text)}`: {error}.") from None
    target[key] = _absolute_paths(value, dotted, Path.cwd())


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
        is_named = location[:1] == ["workloads"] and len(location) > 1
        return str(cause).replace("`workload.", f"`workloads.{location[1]}.", 1) if is_named else str(cause)
    return f"`{dotted}`: {first['msg'].removeprefix('Value error, ')} (got {shortened(repr(first['input']))})."


def shortened(text: str) -> str:
    """A value as messages show it: its beginning, without secrets."""
    shown = without_secrets(text)
    return shown if len(shown) <= 120 else f"{shown[:117]}..."


def check_values(data: Any, booleans: Collection[str], dotted: str = "") -> None:
    """Raises InputError for a value that is of no use in any key, and that validation lets pass.

    Args:
        data: Values, in mappings and lists.
        booleans: Dotted keys that take true and false.
        dotted: The key of ``data``.
    """
    if isinstance(data, Mapping):
        for key, value in data.items():
            check_values(value, booleans, f"{dotted}.{key}" if dotted else str(key))
    elif isinstance(data, list | tuple):
        for value in data:
            check_values(value, booleans, dotted)
    elif problem := _problem(data, dotted in booleans, dotted.startswith(FREE_KEYS)):
        raise InputError(f"`{dotted}` {problem}, but got `{shortened(str(data))}`.")


def _problem(value: Any, may_be_boolean: bool, is_free: bool) -> str:
    """What a value must be that it is not; empty if there is nothing to say."""
    if isinstance(value, bool):
        return "" if may_be_boolean or is_free else "must not be true or false"
    if isinstance(value, int | float):
        return "" if math.isfinite(value) and abs(value) < 2**63 else "must be a finite number that 64 bits can hold"
    if isinstance(value, str) and not is_free:
        if not value.strip():
            return "must not be empty; leave the key out for its default"
        if len(value) > LONGEST_TEXT:
            return f"must have at most {LONGEST_TEXT:,} characters"
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
            return "must not hold control characters"
    return ""


def _known_keys(recipe: type[BaseModel], sections: Sequence[str]) -> list[str]:
    """Keys of a section, from the types of the recipe's fields."""
    model: Any = recipe
    for section in sections:
        if not hasattr(model, "model_fields"):  # a mapping of names that are free
            model = get_args(model)[-1]
            continue
        model = model.model_fields[section].annotation
        model = next((arg for arg in get_args(model) if hasattr(arg, "model_fields")), model)
    return list(model.model_fields) if hasattr(model, "model_fields") else [field.name for field in fields(model)]


def boolean_keys(recipe: type[BaseModel]) -> frozenset[str]:
    """Dotted keys that take true and false, from the types of the recipe's fields."""
    found = set[str]()
    for name, field in recipe.model_fields.items():
        inside = getattr(field.annotation, "model_fields", {})
        found |= {name} if field.annotation is bool else set()
        found |= {f"{name}.{key}" for key, one in inside.items() if one.annotation is bool}
    return frozenset(found)


def split_source(source: str, base: Path = Path()) -> tuple[str, str]:
    """Splits ``path:name`` at its last colon; not at one in a path, after a drive or in a slice (``train[:9]``)."""
    match = re.fullmatch(r"(.+):((?:[^:/\\\[\]]|\[[^\]]*\])*)", source)
    return (source, "") if match is None or _exists(base / source) else (match[1], match[2])

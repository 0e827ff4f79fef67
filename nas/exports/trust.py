"""What in a folder that someone else may have made is code, and is not run without the user's word.

An export without a stock config carries modelling files. Those of this version are known, and run; any other file of
Python is its maker's. A ``torch.export`` program may hold pickled objects, which run code when they are read.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from nas.modeling.own_code import MODELING_FILES
from nas.recipe.code import code_keys
from nas.recipe.schema import Recipe
from search_spaces import InputError
from search_spaces.errors import DAMAGE

PROGRAMS = ("*.pt2", "*.pkl", "*.pickle")
CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
LOADING_KEYS = ("trust_remote_code",)
"""Keys of a recipe whose code runs when its parent is loaded."""
SCORING_KEYS = (*LOADING_KEYS, "task.test", "task.train", "task.validation", "task.metrics")
"""Those whose code runs when a model is scored."""

WAY_OUT = "read it, and add --trust-remote-code if you trust who made it"


def require_trusted_folder(folder: Path) -> None:
    """Raises InputError if a model folder holds code that is not this version's."""
    if names := foreign_code(folder):
        raise InputError(f"`{folder}` holds code that would run ({', '.join(names[:3])}); {WAY_OUT}.")


def require_trusted_recipe(run: Path, recipe: Recipe, keys_of_use: tuple[str, ...] = SCORING_KEYS) -> None:
    """Raises InputError if the recipe of a run names code that runs when it is scored with, or used otherwise."""
    keys = [key for key in code_keys(recipe) if key.startswith(keys_of_use)]
    if keys:
        raise InputError(f"the recipe of `{run}` names code that would run (`{keys[0]}`); {WAY_OUT}.")


def foreign_code(folder: Path) -> list[str]:
    """What in a model folder is code and not this version's: files, and classes in other repositories."""
    python = [file for file in sorted(folder.rglob("*.py")) if not _is_ours(file)]
    programs = [file for pattern in PROGRAMS for file in sorted(folder.rglob(pattern))]
    found = [str(file.relative_to(folder)) for file in (*python, *programs)]
    return [*found, *(name for config in CONFIGS for name in _other_repositories(folder / config))]


def _is_ours(file: Path) -> bool:
    return file.name in MODELING_FILES and file.read_bytes() == _own_files()[file.name]


@cache
def _own_files() -> dict[str, bytes]:
    return {name: (files("nas.modeling") / name).read_bytes() for name in MODELING_FILES}


def _other_repositories(config: Path) -> list[str]:
    """Classes that a config takes from another repository: ``owner/name--module.Class``."""
    if not config.is_file():
        return []
    try:
        return [name for name in _texts(json.loads(config.read_bytes()).get("auto_map", {})) if "--" in name]
    except DAMAGE:
        return []  # whoever reads it says so


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in _texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) else []

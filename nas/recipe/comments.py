"""Writes a recipe as YAML with a comment behind each key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nas.recipe.strict_yaml import dump_inline

COMMENT_COLUMN = 42
"""Comments start here, or behind a longer value."""


def commented_yaml(recipe: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """A recipe as YAML, sections as blocks.

    Args:
        recipe: Section -> key -> value, or key -> value.
        comments: Dotted key -> comment. That of a key which the recipe lacks becomes a line of its own.
    """
    keys = dict.fromkeys((*recipe, *(dotted.partition(".")[0] for dotted in comments)))
    lines: list[str] = []
    for key in keys:
        value = recipe.get(key)
        if isinstance(value, Mapping):
            lines += ["", _commented(f"{key}:", comments.get(key, "")), *_section(key, value, comments)]
        else:
            lines.append(_line(key, value, comments.get(key, ""), key in recipe))
    return "\n".join(lines) + "\n"


def _section(section: str, values: Mapping[str, Any], comments: Mapping[str, str]) -> Iterator[str]:
    below = [dotted.partition(".")[2] for dotted in comments if dotted.startswith(f"{section}.")]
    for key in dict.fromkeys((*values, *below)):
        yield _line(f"  {key}", values.get(key), comments.get(f"{section}.{key}", ""), key in values)


def _line(key: str, value: Any, comment: str, is_set: bool) -> str:
    if not is_set:
        return f"{key[: -len(key.lstrip())]}# {key.lstrip()}: {comment}"
    is_bound = isinstance(value, str) and value[:1] in "<=>"
    text = f'"{value}"' if is_bound else dump_inline(value)
    return _commented(f"{key}: {text}", comment)


def _commented(text: str, comment: str) -> str:
    return f"{text:{COMMENT_COLUMN}}  # {comment}" if comment else text

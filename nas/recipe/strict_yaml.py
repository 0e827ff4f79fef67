"""YAML of recipes: the values of YAML 1.2, and nothing that a reader of the file would not expect.

YAML 1.1, which PyYAML reads, takes ``12:30`` for 750, ``no`` for false, ``010`` for 8 and ``5e-5`` for a text; and of
a key that is given twice, it drops the first.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from search_spaces.errors import DAMAGE, InputError, described, short_error

MAX_DEPTH = 20
"""Levels of nested values; recipes have four."""
MAX_VALUES = 20_000
"""Values of a file, each alias counted as what it stands for."""
MAX_BYTES = 1_000_000

PREFIX = "tag:yaml.org,2002:"
TAGS = ("bool", "null", "int", "float", "merge", "str", "seq", "map")
"""Tags that values may have."""

CORE = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)
"""Name of a tag, the texts that have it in YAML 1.2, and their first characters."""


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2 core values."""


class _Dumper(yaml.SafeDumper):
    """Writes what YAML 1.1 and 1.2 both read alike."""

    def ignore_aliases(self, data: Any) -> bool:
        """Writes each value out."""
        return True


_Loader.yaml_implicit_resolvers = {}
for _cls in (_Loader, _Dumper):
    for _tag, _pattern, _first in CORE:
        _resolve = (PREFIX + _tag, re.compile(f"(?:{_pattern})$"), [*_first.replace("\0", "")])
        _cls.add_implicit_resolver(*_resolve)
_Loader.yaml_implicit_resolvers.setdefault("", []).append((PREFIX + "null", re.compile("$")))


def _to_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


def _to_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor(PREFIX + "int", _to_int)
_Loader.add_constructor(PREFIX + "float", _to_float)


def load(text: str | bytes) -> Any:
    """Reads one YAML document.

    Raises:
        InputError: If it is none, or a key is no text or given twice, or it holds itself or too much.
    """
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, [], {})
        return loader.construct_document(node)
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"values must be nested at most {MAX_DEPTH} deep, but are deeper") from None
    except (yaml.YAMLError, *DAMAGE) as error:
        is_text = isinstance(error, yaml.YAMLError)
        raise InputError(short_error(error) if is_text else f"a tag must fit its value ({described(error)})") from None
    finally:
        if loader is not None:
            loader.dispose()


def dump(data: Any) -> str:
    """Writes values as YAML, in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


def dump_inline(data: Any) -> str:
    """Writes a value as YAML on one line."""
    options: dict[str, Any] = {"default_flow_style": True, "sort_keys": False, "width": 10**6, "allow_unicode": True}
    return str(yaml.dump(data, Dumper=_Dumper, **options)).removesuffix("...\n").strip()


def _check(node: yaml.Node, above: list[yaml.Node], sizes: dict[int, int]) -> int:
    """Counts the values of a node, and raises InputError for what `load` refuses."""
    if any(node is other for other in above):
        raise InputError(f"line {_line(node)}: a value must not be part of itself, but an alias makes it so")
    if len(above) > MAX_DEPTH:
        raise InputError(f"line {_line(node)}: values must be nested at most {MAX_DEPTH} deep, but are deeper")
    if node.tag.removeprefix(PREFIX) not in TAGS:
        raise InputError(f"line {_line(node)}: a value must be text, number, list or mapping, but is a `{node.tag}`")
    if id(node) not in sizes:
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        sizes[id(node)] = 1 + sum(_check(child, [*above, node], sizes) for child in _children(node))
    if sizes[id(node)] > MAX_VALUES:
        raise InputError(f"line {_line(node)}: at most {MAX_VALUES:,} values may be given, but there are more")
    return sizes[id(node)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _check_keys(node: yaml.MappingNode) -> None:
    """Raises InputError for a key that is no text, or is given twice."""
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag == PREFIX + "merge":
            continue
        if key.tag != PREFIX + "str":
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise InputError(f"line {_line(key)}: a key must be a text, but got `{shown}`; put it in quotes")
        if key.value in seen:
            raise InputError(
                f"line {_line(key)}: a key must be given once, but `{key.value}` is also in line {seen[key.value]}"
            )
        seen[key.value] = _line(key)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1

"""Writes the reference pages that follow from the code: the recipe, the commands, the families.

Run ``python -m docs.generate`` after changing one of them. ``tests/test_docs.py`` fails while a page is out of date.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from nas.cli import app
from nas.pipeline import STAGES
from nas.recipe.json_schema import recipe_json_schema
from search_spaces import FAMILIES, TASKS
from search_spaces.families.checked import checked_types

REFERENCE = Path(__file__).parent / "reference"
SCHEMA = REFERENCE / "recipe.schema.json"
NOTE = "<!-- Written by docs/generate.py; do not edit. -->\n\n"


def recipe_page() -> str:
    """Every key of a recipe, from the schema that validates it."""
    schema = recipe_json_schema()
    sections = {name: schema["$defs"][ref] for name, ref in _sections(schema)}
    parts = [
        "# Recipe",
        "A recipe is a YAML file. `model` and `task` must be given; every other key has a default. "
        "`nas search recipe.yaml --dry-run` prints the recipe with all of its defaults. "
        "`section.key=value` after the recipe on the command line overrides a key, for instance "
        "`search.evaluations=50`. A value is read as YAML. Paths in the file are relative to the file; paths on the "
        "command line are relative to the working directory.",
        "## Top level",
        _key_table("", schema, sections),
    ]
    for name, section in sections.items():
        parts += [f"## {name}", _prose(section.get("description", "")), _key_table(name, section, {})]
    return "\n\n".join(part for part in parts if part) + "\n"


def commands_page() -> str:
    """Every command, from the typer application itself."""
    group = typer.main.get_command(app)
    parts = [
        "# Commands",
        f"{group.help} Each command prints its options with `--help`.",
        "Exit codes: 0 if all went well; 2 if an input is wrong, a check failed or the command was stopped, with one "
        "line on standard error that says what to change. A command that was stopped resumes when it is typed again.",
    ]
    for name, command in group.commands.items():
        parts += [
            f"## nas {name}",
            _prose(inspect.cleandoc(command.help or "")),
            *([_stage_table()] if name == "search" else []),
            f"```text\n{_usage(name, command)}\n```",
        ]
        parts.append(_option_table(command.params))
    return "\n\n".join(parts) + "\n"


def _stage_table() -> str:
    return _table(("Stage", "What it does"), [(f"`{stage.name}`", stage.meaning) for stage in STAGES])


def families_page() -> str:
    """Every family, its tasks and dimensions, from the tables in `search_spaces/families/`."""
    families, checked = sorted(FAMILIES.values(), key=lambda family: family.model_type), checked_types()
    shared = [name for name in families[0].dimensions if all(name in family.dimensions for family in families)]
    rows = []
    for family in families:
        others = [name for name in family.all_dimensions if name not in shared]
        cells = (family.all_tasks, others, family.skippable)
        rows.append((f"`{family.model_type}`", *(_codes(names) or "–" for names in cells)))
    parts = [
        "# Families",
        f"{len(FAMILIES)} model types (`model_type` of a Hugging Face config) have a table. `nas families` prints "
        "the same table. [The search space](../guides/search-space.md) explains the dimensions; "
        "[Add a family](../contributing/family.md) shows how to add a model type.",
        "A type without a table whose modules are laid out as those of one in this list, such as `camembert` or "
        "`granite`, gets that table. Before a run writes anything, random subnetworks of the model prove it: they "
        "compute what they should with padding, in both attention implementations, and with a cache. `nas families "
        "granite` does so on a tiny random model, and says what may vary. Where the table does not know a module "
        "outside the layers, the hidden size is fixed.",
        f"Every family has the dimensions {_codes(shared)}. The table lists the others.",
        _table(("model type", "tasks", "other dimensions", "blocks that may be skipped"), rows),
        "## By task",
        "Types with a table whose models do a task:",
        _table(("task", "model types"), list(_types_by_task())),
        "## Types that were proved with another's table",
        f"{len(checked.passed)} more types keep every law of slicing on a tiny random model, as found by "
        "`experiments/bench/known_layouts.py`. The last column names dimensions of the table that break a law in "
        "this type: `space: auto` leaves them out, and a recipe that names one is refused. `image-feature-extraction` "
        "is no task of a recipe: such a type is sliced and exported from Python.",
        _table(
            ("model type", "laid out as", "tasks", "dimensions", "left out"),
            [
                (
                    f"`{name}`",
                    f"`{one.alike}`",
                    *(_codes(names) or "–" for names in (one.tasks, one.dimensions, one.broken)),
                )
                for name, one in checked.passed.items()
            ],
        ),
        "## Types that are not supported",
        f"{len(checked.failed)} types are laid out as a known one, but break a law, or need inputs that no task of "
        f"that one gives: {_codes(checked.failed)}.",
        f"{len(checked.unknown)} types are laid out as none: {_codes(checked.unknown)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _types_by_task() -> Iterator[tuple[str, str]]:
    """Each task with the types that have it."""
    for task in TASKS:
        if types := [name for name, family in sorted(FAMILIES.items()) if task in family.all_tasks]:
            yield f"`{task}`", _codes(types)


PAGES: dict[str, Callable[[], str]] = {
    "recipe.md": recipe_page,
    "commands.md": commands_page,
    "families.md": families_page,
}
"""File in `docs/reference/` -> what writes its text."""


def pages() -> dict[Path, str]:
    """File -> the text that it must hold."""
    schema = json.dumps(recipe_json_schema(), indent=2, ensure_ascii=False) + "\n"
    return {**{REFERENCE / name: NOTE + write() for name, write in PAGES.items()}, SCHEMA: schema}


def _sections(schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name of a section -> name of its definition."""
    for name, prop in schema["properties"].items():
        for option in (prop, *prop.get("anyOf", ())):
            if "$ref" in option:
                yield name, option["$ref"].rpartition("/")[2]


def _key_table(section: str, schema: Mapping[str, Any], sections: Mapping[str, Any]) -> str:
    required = schema.get("required", [])
    rows = []
    for name, prop in schema["properties"].items():
        key = f"`{section}.{name}`" if section else f"`{name}`"
        if name in sections:
            default = "required" if name in required else _default(prop["default"]) if "default" in prop else ""
            rows.append((key, "section", default, f"see [{name}](#{name})"))
            continue
        default = (
            "required"
            if name in required
            else _default(prop.get("default", [] if prop.get("type") == "array" else {}))
        )
        rows.append((key, _type(prop), default, _prose(prop.get("description", ""))))
    return _table(("key", "value", "default", ""), rows)


def _type(prop: Mapping[str, Any]) -> str:
    """A JSON schema type in words."""
    if "anyOf" in prop:
        return " or ".join(_type(option) for option in prop["anyOf"] if option.get("type") != "null")
    if "$ref" in prop:
        return f"keys of `{prop['$ref'].rpartition('/')[2].lower()}`"
    if "enum" in prop:
        return _codes(prop["enum"])
    if "const" in prop:
        return f"`{prop['const']}`"
    if prop.get("type") == "array":
        return f"list of {_type(prop['items'])}".replace("integer", "integers").replace("number", "numbers")
    if prop.get("type") == "object":
        values = prop.get("additionalProperties")
        return "mapping" if not isinstance(values, dict) else f"mapping: name to {_type(values)}"
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true`, `false`"}[prop["type"]]
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {prop[limit]:g}" for limit, sign in limits.items() if limit in prop]
    return ", ".join([words, *bounds])


def _default(value: Any) -> str:
    """A default as it is written in a recipe."""
    return "not set" if value is None or value == "" else f"`{json.dumps(value)}`".replace('"', "")


def _usage(name: str, command: Any) -> str:
    words = ["nas", name]
    for param in command.params:
        shown = param.name.upper()
        if param.opts[0].startswith("-"):
            value = param.metavar or param.opts[0].lstrip("-").upper()
            shown = param.opts[0] + ("" if getattr(param, "is_flag", False) else f" {value}")
        elif param.nargs == -1:
            shown = "KEY=VALUE ..." if param.name == "overrides" else f"{shown} ..."
        words.append(shown if param.required else f"[{shown}]")
    return " ".join(words)


def _option_table(params: Any) -> str:
    rows = []
    for param in params:
        name = param.opts[0] if param.opts[0].startswith("-") else param.name.upper()
        shown = param.default not in (None, False, "") and not callable(param.default)
        default = "required" if param.required else f"`{param.default}`" if shown else ""
        rows.append((f"`{name}`", default, _prose(param.help or "")))
    return _table(("argument", "default", ""), rows)


def _prose(text: str) -> str:
    """The text of a docstring as Markdown, without its sections: one line a paragraph, single backquotes."""
    text = re.split(r"\n\n(?:Examples|Attributes|Raises):\n", inspect.cleandoc(text))[0]
    text = re.sub("(`[^`]*`)|<", lambda match: match[1] or "&lt;", text.replace("``", "`"))
    paragraphs = [paragraph for paragraph in text.split("\n\n") if not paragraph.startswith("\b")]  # a table follows
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _codes(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    for file, text in pages().items():
        file.write_text(text)

"""Model card: the README.md of an exported folder, written from its subnet.json alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.exports.formats import FORMATS
from nas.recipe.objectives import COSTS, format_value
from predictors import Workload
from search_spaces import TASKS, SubnetConfig

COLUMNS = ("latency_ms", "size_mb", "memory_mb")
"""Costs of a format, after its qualities."""


def write_card(folder: Path, story: Mapping[str, Any]) -> None:
    """Writes README.md: what it is, its figures with split, error and workload, how to load it, its licence."""
    from huggingface_hub import ModelCard, ModelCardData

    name = story["name"]
    data = ModelCardData(
        library_name="transformers",
        license=story.get("license"),
        base_model=story["base_model"],
        pipeline_tag=story["task"],
        tags=["paretoformer", "neural-architecture-search"],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}, subnetwork {story['key']}",
        _what(story, name),
        "## Figures\n\n" + _figures(story),
        "## Runtimes\n\n" + _runtimes(story) if story.get("formats") else "",
        "## Load\n\n" + _load(folder, story),
        "## Licence\n\n" + _licence(story, name),
    ]
    ModelCard("\n\n".join(part for part in parts if part) + "\n").save(folder / "README.md")


def licence_of(model: str) -> str | None:
    """The licence that a model's own card states, if there is a card to read."""
    from huggingface_hub import ModelCard

    file = Path(model, "README.md")
    if Path(model).exists() and not file.is_file():
        return None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return ModelCard.load(file if file.is_file() else model, ignore_metadata_errors=True).data.license
    except Exception:
        return None


def _what(story: Mapping[str, Any], name: str) -> str:
    subnet = SubnetConfig.from_dict(story["subnet"])
    rows = "\n".join(f"| {part} | {value} |" for part, value in subnet.parts.items())
    tuned = " Its weights were fine-tuned after the search." if "inherited" in story else ""
    return (
        f"A subnetwork of `{name}` for {story['task']}, found by hardware-aware architecture search with paretoformer."
        f"{tuned}\n\n| | |\n|---|---|\n{rows}"
    )


def _figures(story: Mapping[str, Any]) -> str:
    parent = story.get("parent") or {"values": {}, "errors": {}}
    lines = ["| | this model | its parent |", "|---|---|---|"]
    for name, value in story["values"].items():
        mine = format_value(name, value, story["errors"].get(name))
        theirs = parent["values"].get(name)
        beside = "" if theirs is None else format_value(name, theirs, parent["errors"].get(name))
        lines.append(f"| {name} | {mine} | {beside} |")
    workload = Workload.from_dict(story["workload"])
    how = "measured on this exported model" if story["measured"] and not story.get("predicted") else "predicted"
    split = story["split"] if story["measured"] else f"a slice of the training data, not on {story['split']}"
    return "\n".join(lines) + (
        f"\n\nQuality ± its standard error on `{split}`. Latency {how}: {workload}, {story['device']}; nine in ten "
        "repetitions in a new process lie within ±."
    )


def _runtimes(story: Mapping[str, Any]) -> str:
    formats = story["formats"]
    qualities = [name for name in story["values"] if name not in COSTS]
    columns = [n for n in (*qualities, *COLUMNS) if any(n in found["values"] for found in formats.values())]
    lines = ["| format | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for form, found in formats.items():
        cells = [
            format_value(n, found["values"][n], found["errors"].get(n)) if n in found["values"] else "–"
            for n in columns
        ]
        lines.append(f"| {form} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + (
        "\n\nMeasured side by side on the same workload; memory is what loading the model and running the workload's "
        "input adds at most to a clean process, libraries not counted."
    )


def _load(folder: Path, story: Mapping[str, Any]) -> str:
    auto = TASKS[story["task"]].auto_class
    own_code = any(folder.glob("*.py"))
    trust = ", trust_remote_code=True" if own_code else ""
    note = (
        "The architecture is not one that a stock config describes: its one modelling file is beside the weights.\n\n"
        if own_code
        else ""
    )
    files = [f"- `{file}`: {name}" for name, (file, _) in FORMATS.items() if (folder / file).is_file()]
    return (
        f"{note}```python\nfrom transformers import {auto}\n\n"
        f'model = {auto}.from_pretrained("this-folder"{trust})\n```' + ("\n\n" + "\n".join(files) if files else "")
    )


def _licence(story: Mapping[str, Any], name: str) -> str:
    if story.get("license"):
        return f"That of its parent, `{name}`: {story['license']}."
    return f"That of its parent, `{name}`, whose card states none that could be read here."

"""Model card: the README.md of an exported folder, written from its subnet.json."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.exports.model_info import by_workload
from nas.recipe.objectives import base_name, format_value, is_cost
from nas.runs.files import write_text
from nas.tasks.sentence_modules import MODULES
from predictors import Workload
from predictors.measurement.runtimes import FORMATS
from search_spaces import TASKS, SubnetConfig

COLUMNS = ("latency_ms", "size_mb", "memory_mb")
"""Costs in the table of formats, after the metrics."""
CROSS_ENCODERS = {"text-ranking": "CrossEncoder"}
BACKENDS = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}
"""Backend of sentence-transformers, which is the folder of its files -> the file that it loads by default."""


def write_card(folder: Path, info: Mapping[str, Any]) -> None:
    """Writes README.md: the subnetwork, its metrics and costs, how to load it, and its licence.

    Args:
        folder: The exported folder.
        info: The content of its subnet.json.
    """
    from huggingface_hub import ModelCard, ModelCardData

    name = info["name"]
    data = ModelCardData(
        library_name="sentence-transformers" if _sentence_class(folder, info["task"]) else "transformers",
        license=info.get("license"),
        base_model=info["base_model"],
        pipeline_tag=TASKS[info["task"]].pipeline or info["task"],
        tags=["paretoformer", "neural-architecture-search"],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}, subnetwork {info['key']}",
        _summary(info, name),
        "## Metrics and costs\n\n" + _metrics_table(info),
        _width(info["parent_width"], name) if "parent_width" in info else "",
        "## Formats\n\n" + _formats_table(info) if info.get("formats") else "",
        "## Load\n\n" + _loading_code(folder, info),
        "## Licence\n\n" + _licence(info, name),
    ]
    write_text(folder / "README.md", str(ModelCard("\n\n".join(part for part in parts if part) + "\n")))


def licence_of(model: str) -> str | None:
    """Returns the licence in a model's own card; None if the card cannot be read or names none."""
    from huggingface_hub import ModelCard

    file = Path(model, "README.md")
    if Path(model).exists() and not file.is_file():
        return None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return ModelCard.load(file if file.is_file() else model, ignore_metadata_errors=True).data.license
    except Exception:
        return None


def _summary(info: Mapping[str, Any], name: str) -> str:
    subnet = SubnetConfig.from_dict(info["subnet"])
    rows = "\n".join(f"| {part} | {value} |" for part, value in subnet.parts.items())
    tuned = " Its weights were fine-tuned after the search." if "inherited" in info else ""
    return (
        f"A subnetwork of `{name}` for {info['task']}, found by hardware-aware architecture search with paretoformer."
        f"{tuned}\n\n| | |\n|---|---|\n{rows}"
    )


def _metrics_table(info: Mapping[str, Any]) -> str:
    parent = info.get("parent") or {"values": {}, "errors": {}}
    lines = ["| | this model | its parent |", "|---|---|---|"]
    for name, value in info["values"].items():
        cell = format_value(name, value, info["errors"].get(name))
        parent_value = parent["values"].get(name)
        parent_cell = "" if parent_value is None else format_value(name, parent_value, parent["errors"].get(name))
        lines.append(f"| {name} | {cell} | {parent_cell} |")
    under = [
        f"{f'{name}: ' if name else ''}{Workload.from_dict(own['workload'])}, {own['device']}"
        for name, own in by_workload(info).items()
    ]
    latency_source = (
        "measured on this exported model" if info["measured"] and not info.get("predicted") else "predicted"
    )
    stored = f" Its weights are stored in {info['dtype']}; `nas verify` measures them so." if "dtype" in info else ""
    split = info["split"] if info["measured"] else f"a slice of the training data, not on {info['split']}"
    return "\n".join(lines) + (
        f"\n\nMetrics ± their standard error on `{split}`. Latency {latency_source}: {'; '.join(under)}; "
        f"90 % of repetitions in a new process lie within ±.{stored}"
    )


def _width(mapped: Mapping[str, Any], name: str) -> str:
    return (
        f"A linear map, fitted on {mapped['texts']} texts, brings its vectors to the {mapped['width']} components of "
        f"`{name}`. Their mean cosine similarity to those of `{name}` on held-out texts is "
        f"{mapped['cosine_similarity']:.4f}; the metrics above are those of the vectors before the map."
    )


def _formats_table(info: Mapping[str, Any]) -> str:
    formats = info["formats"]
    metrics = [name for name in info["values"] if not is_cost(name)]
    known = {name for results in formats.values() for name in results["values"]}
    costs = sorted(
        (name for name in known if base_name(name) in COLUMNS), key=lambda name: COLUMNS.index(base_name(name))
    )
    columns = [*(name for name in metrics if name in known), *costs]
    lines = ["| format | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for format_name, results in formats.items():
        cells = [
            format_value(n, results["values"][n], results["errors"].get(n)) if n in results["values"] else "–"
            for n in columns
        ]
        lines.append(f"| {format_name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + (
        "\n\nAll formats were measured together on the same workload. Memory is the peak that loading the model and "
        "running the workload adds to a clean process, without libraries."
    )


def _loading_code(folder: Path, info: Mapping[str, Any]) -> str:
    library, loads = "sentence_transformers", _sentence_class(folder, info["task"])
    if not loads:
        library, loads = "transformers", f"{TASKS[info['task']].auto_class}.from_pretrained"
    own_code = any(folder.glob("*.py"))
    trust = ", trust_remote_code=True" if own_code else ""
    note = "No stock config describes this architecture; its modeling code is in this folder.\n\n" if own_code else ""
    files = [
        f"- `{written.file}`: {name}{_backend(written.file) if library == 'sentence_transformers' else ''}"
        for name, written in FORMATS.items()
        if (folder / written.file).is_file()
    ]
    return (
        f"{note}```python\nfrom {library} import {loads.partition('.')[0]}\n\n"
        f'model = {loads}("this-folder"{trust})\n```' + ("\n\n" + "\n".join(files) if files else "")
    )


def _sentence_class(folder: Path, task: str) -> str:
    """The class of sentence-transformers that loads a folder; empty for none."""
    return "SentenceTransformer" if (folder / MODULES).is_file() else CROSS_ENCODERS.get(task, "")


def _backend(file: str) -> str:
    """How sentence-transformers loads a file in another format; empty for those that it does not load."""
    backend, _, name = file.partition("/")
    if backend not in BACKENDS:
        return ""
    other = "" if name == BACKENDS[backend] else f', model_kwargs={{"file_name": "{file}"}}'
    return f', with `backend="{backend}"{other}`'


def _licence(info: Mapping[str, Any], name: str) -> str:
    if info.get("license"):
        return f"That of its parent, `{name}`: {info['license']}."
    return f"That of its parent, `{name}`; its card names none, or could not be read."

"""The pages: what they name exists, commands and recipes are valid, Python runs, generated pages are current."""

from __future__ import annotations

import importlib
import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from transformers import pipeline

import nas
from nas.cli import app
from nas.exports.formats import convert
from nas.recipe.schema import Recipe
from search_spaces import FAMILIES
from search_spaces.families.checked import checked_types

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")] + sorted((ROOT / "docs").rglob("*.md"))
GENERATOR = ROOT / "docs" / "generate.py"
BASE: dict[str, Any] = {
    "model": "m",
    "task": {"type": "text-classification", "train": "a.csv", "test": "b.csv"},
    "space": {"num_hidden_layers": [1, 2]},
}
"""What a page that shows only some sections of a recipe leaves out."""

NOT_RUN = {"README.md": 1, "docs/guides/deploying.md": 3}
"""Page -> its Python blocks that cannot run here, each preceded by its reason; one more must be meant."""

FENCE = re.compile(r"(<!-- not run: [^>]+ -->\n)?^( *)```(\w+)\n(.*?)^\2```", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    code: str
    runs: bool


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    for reason, _, language, code in FENCE.findall(page.read_text()):
        if language in languages:
            yield Block(language, textwrap.dedent(code), not reason)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def pages_with(*languages: str) -> list[Any]:
    return [pytest.param(page, id=name_of(page)) for page in PAGES if any(b.runs for b in blocks(page, *languages))]


def spans(page: Path) -> list[str]:
    """Inline code."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text()))


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `nas` command that is to be typed."""
    for block in blocks(page, "bash", "console"):
        for line in block.code.replace("\\\n", " ").splitlines():
            if match := re.match(r"(?:\$ )?nas (.*)", line if block.language == "bash" else line.removeprefix("$ ")):
                yield shlex.split(match[1], comments=True)


def generator() -> dict[str, Any]:
    return runpy.run_path(str(GENERATOR))


def test_generated_pages_are_current() -> None:
    for file, text in generator()["pages"]().items():
        assert file.read_text() == text, f"{name_of(file)} is out of date; run `python -m docs.generate`"


def test_the_front_page_counts_the_types() -> None:
    counts = re.findall(r"(\d+) (?:more |model )types", (ROOT / "README.md").read_text())
    assert counts == [str(len(FAMILIES)), str(len(checked_types().passed))]


def test_every_key_and_option_is_described() -> None:
    for name in ("recipe.md", "commands.md"):
        rows = re.findall(r"^\| `([^`]+)`.*\|(.*)\|$", (ROOT / "docs" / "reference" / name).read_text(), re.M)
        assert rows and not [key for key, text in rows if not text.strip()]


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_recipes_are_valid(page: Path) -> None:
    for block in blocks(page, "yaml"):
        recipe = yaml.safe_load(block.code)
        sections = {key: {**BASE[key], **recipe.get(key, {})} for key in ("task", "space")}
        Recipe.parse({"model": BASE["model"], **recipe, **sections})


@pytest.mark.parametrize("page", pages_with("bash", "console"))
def test_commands_are_valid(page: Path) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command, *words in commands(page):
        if command != "--help":
            known[command].make_context(command, words)
            assert set(re.findall(r"^(\w+\.\w+)=", "\n".join(words), re.M)) <= keys()


def test_commands_within_sentences_exist() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for page in PAGES:
        for words in (span.split() for span in spans(page) if re.match(r"nas [a-z]", span)):
            assert words[1] in known, (name_of(page), words)
            options = {option for param in known[words[1]].params for option in param.opts}
            assert {word for word in words if word.startswith("--")} <= options, (name_of(page), words)


def keys() -> set[str]:
    """Every key of a recipe, as in ``section.key``."""
    text = (ROOT / "docs" / "reference" / "recipe.md").read_text()
    return set(re.findall(r"^\| `([\w.]+)`", text, re.M))


def test_keys_files_and_names_exist() -> None:
    sections, known = {key.partition(".")[0] for key in keys() if "." in key}, keys()
    for page in PAGES:
        for span in spans(page):
            where = f"{name_of(page)} names `{span}`"
            if match := re.match(r"(\w+)\.(\w+)(?:$|[:=])", span):
                if match[1] in sections and (match[1], match[2]) != ("search", "md"):
                    assert f"{match[1]}.{match[2]}" in known, f"{where}, which is no recipe key"
                elif match[1] == "nas":
                    there = match[2] in nas.__all__ or importlib.util.find_spec(span.partition("=")[0])
                    assert there, f"{where}, which does not exist"
            if re.match(r"(nas|predictors|search_spaces|tests|experiments|docs)/[\w./-]*$", span):
                assert (ROOT / span).exists(), f"{where}, which does not exist"


@pytest.mark.parametrize("package", ["search_spaces", "predictors", "nas"])
def test_the_map_has_every_folder_and_loose_module(package: str) -> None:
    result = {path.parent for path in (ROOT / package).glob("*/__init__.py")}
    result |= {path for path in (ROOT / package).glob("*.py") if path.name != "__init__.py"}
    page = (ROOT / "docs" / "contributing" / "tree.md").read_text()
    assert [name_of(path) for path in result if f"`{name_of(path)}{'/' * path.is_dir()}`" not in page] == []


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("experiments/*/*.md")]
    assert {name_of(page).removeprefix("docs/") for page in pages} - listed == set()


def test_the_reference_has_every_public_name() -> None:
    headings = set(re.findall(r"heading: nas\.(\w+)", (ROOT / "docs" / "reference" / "python.md").read_text()))
    assert headings == set(nas.__all__) - {"FAMILIES"}


def test_the_reference_names_what_exists() -> None:
    for name in re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference" / "python.md").read_text(), re.M):
        module, attribute = name.rsplit(".", 1)
        assert hasattr(importlib.import_module(module), attribute), name


def test_blocks_that_do_not_run_are_counted() -> None:
    result = Counter(name_of(page) for page in PAGES for block in blocks(page, "python") if not block.runs)
    assert result == NOT_RUN


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("python"))
def test_python_runs(page: Path, finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page, one after the other, next to a finished run of a toy recipe and an export of it."""
    place = tmp_path / "place"
    run = place / "runs" / "quickstart"
    shutil.copytree(finished[1], run)
    shutil.copy(run / "recipe.yaml", place)
    shutil.copytree(next((run / "exports").glob("[!.]*")), place / "small")
    monkeypatch.chdir(place)
    scope: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page, "python"):
        if block.runs:
            exec(compile(block.code, name_of(page), "exec"), scope)


RUNTIME_ONLY = """
import sys
sys.modules.update(torch=None, transformers=None, nas=None)
"""
"""Importing one of these raises ImportError."""


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "form"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_runtime_runs_an_export_alone(finished: tuple[Path, Path], tmp_path: Path, runtime: str, form: str) -> None:
    pytest.importorskip(runtime, reason=f"needs {runtime}")
    pytest.importorskip("onnxscript" if form == "onnx" else runtime, reason="needs onnxscript (extra onnx)")
    code = next(
        block.code
        for block in blocks(ROOT / "docs/guides/deploying.md", "python")
        if f"import {runtime}" in block.code
    )
    export = shutil.copytree(next((finished[1] / "exports").glob("[!.]*")), tmp_path / "small")
    convert(export, [form])
    run = subprocess.run(
        [sys.executable, "-c", RUNTIME_ONLY + code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-2000:]
    classify = pipeline("text-classification", str(export), tokenizer=str(export), device="cpu")
    assert run.stdout.split() == [classify("a good film")[0]["label"]]

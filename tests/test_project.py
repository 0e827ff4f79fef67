"""The project itself: direction of imports, what the wheel holds, a light command line, a README that is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_import_contracts_hold() -> None:
    """Rooms, and files within them, import one way: the contracts stand in pyproject.toml."""
    pytest.importorskip("importlinter")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout


def test_the_space_the_command_line_and_a_refused_recipe_need_no_torch(tmp_path: Path) -> None:
    task = "{type: text-classification, train: t.csv, test: t.csv}"
    (tmp_path / "recipe.yaml").write_text(f"model: m\ntask: {task}\nspace: {{num_hidden_layers: many}}\n")
    code = """
import sys, search_spaces, predictors, nas
from nas.cli import main
sys.argv = ["nas", "search", "recipe.yaml"]
try:
    main()
finally:
    print([m for m in ("torch", "ray", "transformers") if m in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2 and "num_hidden_layers" in done.stderr, done.stderr
    assert done.stdout.strip() == "[]"


def test_help_lists_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "nas.cli", "--help"], capture_output=True, text=True, cwd=ROOT)
    commands = ["search", "profile", "show", "watch", "compare", "dashboard", "export", "convert", "verify"]
    commands += ["finetune", "bench", "families"]
    assert done.returncode == 0 and all(f"  {command} " in done.stdout for command in commands)


@pytest.mark.slow
def test_the_wheel_holds_the_three_packages_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("paretoformer-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"nas", "search_spaces", "predictors"}
    shipped = {"nas/reports/page/report.html", "nas/reports/page/report.js", "nas/py.typed"}
    assert shipped | {"nas/modeling/modeling_nas.py"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_constraints_pin_what_the_project_declares() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in pins if "==" in line}
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    declared = {spec.split(">=")[0].split("[")[0].lower() for spec in [*project["dependencies"], *extras]}
    assert declared - {project["name"]} <= pinned


def test_no_module_hides_a_public_name() -> None:
    """`nas.search` must stay the function once every module of `nas` is imported."""
    modules = {path.stem for path in (ROOT / "nas").iterdir()}
    import nas

    assert not modules & set(nas.__all__)


NAMES_MANY_DIMENSIONS = {
    "nas/modeling/known_layouts.py": "builds a small Hugging Face config, whose fields are called so",
    "nas/modeling/modeling_nas.py": "travels with exports: sections of their configs are called as they were",
    "predictors/measurement/runtimes/gguf.py": "reads a model's Hugging Face config",
    "predictors/latency/work_features.py": "the arithmetic of blocks: products of heads, neurons, channels",
    "search_spaces/layout.py": "reads a parent's Hugging Face config",
}
"""Files outside `search_spaces/dimensions` and families that may name more than two dimensions, and why."""


def test_no_file_knows_the_dimensions() -> None:
    """A dimension is one object in `search_spaces/dimensions`; nothing else names more than two of them."""
    from search_spaces.dimensions import DIMENSIONS

    many = []
    for path in (p for package in ("nas", "predictors", "search_spaces") for p in (ROOT / package).rglob("*.py")):
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        if "dimensions" not in path.parts and "families" not in path.parts:
            # `attention` and `bits` are words of English: as a key or an attribute only
            words = {d: rf"[\"']{d}[\"']|\.{d}\b" if d in ("attention", "bits") else rf"\b{d}\b" for d in DIMENSIONS}
            named = [dimension for dimension, pattern in words.items() if re.search(pattern, text)]
            many += [name] * (len(named) > 2)
    assert sorted(many) == sorted(NAMES_MANY_DIMENSIONS)


ASKS_FOR_OUTPUTS = r"""\.logits\b|["'](\w+_)?logits["']|last_hidden_state|ForSequenceClassification["']"""
OUTPUTS_BY_NAME = {
    "nas/exports/reload.py": "runs without this package; of hidden states it compares the mean over tokens",
    "predictors/measurement/runtimes/gguf.py": "llama.cpp gives the logits of a causal model, and nothing else",
    "predictors/measurement/phases.py": "feeds a decoder with what the encoder has computed",
    "search_spaces/families/mixtral.py": "a field of its config: whether the loss has a term of the router",
    "search_spaces/tasks.py": "the table",
}
"""Files outside `nas/tasks/types` that name an output of a model, and why."""


def test_only_the_table_of_tasks_names_outputs() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for package in ("nas", "predictors", "search_spaces")
        for path in (ROOT / package).rglob("*.py")
        if "types" not in path.parts and re.search(ASKS_FOR_OUTPUTS, path.read_text())
    }
    assert found == OUTPUTS_BY_NAME.keys()


def test_groups_of_tasks_are_in_the_table() -> None:
    from search_spaces import FAMILIES, TASKS
    from search_spaces import tasks as table

    groups = {name: tasks for name, tasks in vars(table).items() if name.endswith("_TASKS")}
    assert groups and all(task in TASKS for tasks in groups.values() for task in tasks)
    assert all(task in TASKS for family in FAMILIES.values() for task in family.tasks)

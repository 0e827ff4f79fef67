"""Folders and runs that someone else made: nothing in them runs without a word; a run needs nothing outside of it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from refusals import Refused, contents

from nas.cli import app
from nas.exports.check import check_folder
from nas.exports.export import export_subnet
from nas.exports.trust import MODELING_FILES, foreign_code, require_trusted_folder
from nas.recipe.code import code_keys
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from search_spaces import InputError


def own_files(folder: Path) -> None:
    """The modelling files that an export of this version carries."""
    folder.mkdir(exist_ok=True)
    for name in MODELING_FILES:
        shutil.copy(str(files("nas.modeling") / name), folder)


def changed(folder: Path) -> None:
    (folder / "modeling_nas.py").write_text((folder / "modeling_nas.py").read_text() + "\nimport os")


def another_file(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "modeling_nas.py.py").write_text("import os")


def program(folder: Path) -> None:
    (folder / "program").mkdir()
    (folder / "program" / "model.pt2").write_bytes(b"PK")


def another_repository(folder: Path) -> None:
    text = json.dumps({"auto_map": {"AutoModel": ["stranger/code--modeling.Model", None]}})
    (folder / "config.json").write_text(text)


def test_files_of_this_version_are_known(tmp_path: Path) -> None:
    own_files(tmp_path / "model")
    assert foreign_code(tmp_path / "model") == []
    require_trusted_folder(tmp_path / "model")


@pytest.mark.parametrize("how", [changed, another_file, program, another_repository])
def test_code_of_others_is_seen(how: Callable[[Path], None], tmp_path: Path) -> None:
    own_files(tmp_path / "model")
    how(tmp_path / "model")
    assert len(foreign_code(tmp_path / "model")) == 1
    with pytest.raises(InputError, match="--trust-remote-code"):
        require_trusted_folder(tmp_path / "model")


@pytest.mark.parametrize(
    ("override", "keys"),
    [
        ("task.train=data.py:train", ["task.train"]),
        ("task.metrics={m: 'os:system'}", ["task.metrics.m"]),
        ("supernet.augment=x.py:f", ["supernet.augment"]),
        ("search.sampler='a/b:C'", ["search.sampler"]),
        ("task.train=data.csv", []),
    ],
)
def test_keys_that_name_code(override: str, keys: list[str], text_recipe: Path) -> None:
    assert code_keys(Recipe.load(text_recipe, [override])) == keys


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> Any:
        return Path.touch, (self.flag,)


@pytest.fixture
def hostile(finished: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A finished run in which everything that can be code touches a file, and that file."""
    _, run = finished
    flag = tmp_path / "flag"
    touch = f"from pathlib import Path\nPath({str(flag)!r}).touch()\n"
    (tmp_path / "metric.py").write_text(f"{touch}\ndef metric(labels, predictions):\n    return 1.0\n")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["task"]["metrics"] = {"mine": f"{tmp_path / 'metric.py'}:metric"}
    recipe["task"]["test"] = f"{tmp_path / 'metric.py'}:metric"
    recipe["search"]["sampler"] = f"{tmp_path}:Sampler"
    recipe["parent"]["augment"] = f"{tmp_path / 'metric.py'}:metric"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    export = next((run / "exports").glob("[!.]*"))
    for folder in (run / "parent", run / "supernet", export):
        (folder / "hostile.py").write_text(touch)
        for name, auto in (
            ("config.json", "AutoModelForSequenceClassification"),
            ("tokenizer_config.json", "AutoTokenizer"),
        ):
            if (folder / name).exists():
                content = json.loads((folder / name).read_text())
                content["auto_map"] = {auto: "hostile.Model", "AutoConfig": "hostile.Config"}
                (folder / name).write_text(json.dumps(content))
        for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin"):
            (folder / name).write_bytes(pickle.dumps(Payload(flag)))
    return run, flag


def test_a_hostile_run_is_only_read(
    hostile: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refused: Refused,
) -> None:
    run, flag = hostile
    before = contents(run)
    for words in (["show", run], ["watch", run, "--once"], ["compare", run, run, "--out", tmp_path / "plot.html"]):
        app([str(word) for word in words], standalone_mode=False)
    export = next((run / "exports").glob("[!.]*"))
    refused("verify", export, "--run", run, says=("hostile.py", "--trust-remote-code"))
    (export / "hostile.py").unlink()
    refused("verify", export, "--run", run, says=("task.test", "--trust-remote-code"))
    says = ("task.metrics.mine", "names code")
    refused("search", "model", "--train", "a.csv", "--test", "b.csv", "--run", run, says=says)
    assert not flag.exists() and contents(run).keys() == before.keys() - {f"exports/{export.name}/hostile.py"}


@pytest.mark.slow
def test_a_hostile_run_exports_without_its_code(hostile: tuple[Path, Path], tmp_path: Path) -> None:
    run, flag = hostile
    export_subnet(Run(run), Run(run).front().knee(), tmp_path / "out")
    assert not flag.exists() and not list((tmp_path / "out").glob("hostile*"))


@pytest.mark.slow
def test_an_export_is_verified_and_trusted(finished: tuple[Path, Path]) -> None:
    """What this version has written needs no word; a program does."""
    _, folder = finished
    run = Run(folder)
    export = next(run.exports.glob("[!.]*"))
    checks, failures = check_folder(export, run)
    assert list(checks) == ["torch"] and not [line for line in failures if "does not run" in line]
    program(export)
    with pytest.raises(InputError, match=r"model\.pt2.*--trust-remote-code"):
        check_folder(export, run)


@pytest.mark.slow
def test_a_moved_run_exports_with_what_it_holds(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Neither the model nor the data of its recipe is there any more."""
    _, folder = finished
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["model"] = "/of/another/machine/model"
    recipe["task"] |= {"train": "/of/another/machine/train.parquet", "test": "/of/another/machine/test.csv"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    folder.rename(tmp_path / "moved")
    run = Run(tmp_path / "moved")
    export_subnet(run, run.front().knee(), tmp_path / "out")
    info = json.loads((tmp_path / "out" / "subnet.json").read_text())
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds `notes\.txt`"):
        export_subnet(run, run.front().knee(), tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "out" / "notes.txt").unlink()
    export_subnet(run, run.front().knee(), tmp_path / "out")
    assert info["base_model"] is None and "/of/another" not in (tmp_path / "out" / "README.md").read_text()

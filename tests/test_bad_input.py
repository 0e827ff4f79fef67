"""Law 9: a bad input gets one clear line, exit code 2, and nothing half-written or lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from command import Command
from conftest import SIZES, TEXT, TOYS, bert
from filelock import FileLock
from transformers import AutoConfig

from nas.cli import app, main
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.stages.search import run_search
from nas.stages.verify import run_verify
from nas.tasks.context import TaskContext

Refused = Callable[..., str]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; the lock is no result."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def one_line(code: object, stderr: str, says: tuple[str, ...]) -> str:
    """Asserts exit code 2 and one line that says all of this."""
    assert code == 2, stderr
    assert stderr.count("\n") == 1 and stderr.startswith("nas: "), stderr
    assert "Traceback" not in stderr
    assert not ("but got" in stderr and "(got " in stderr), f"says twice what it got: {stderr!r}"
    for text in says:
        assert text in stderr, f"{text!r} is not in {stderr!r}"
    return stderr


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command line in this process; returns the one line it refused with."""

    def run(*arguments: object, says: tuple[str, ...] = ()) -> str:
        monkeypatch.setattr(sys, "argv", ["nas", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return one_line(stop.value.code, capsys.readouterr().err, says)

    return run


@pytest.fixture
def not_started(refused: Refused, text_recipe: Path, tmp_path: Path) -> Refused:
    """Refuses a recipe before a run folder is made."""

    def run(*overrides: str, says: tuple[str, ...]) -> str:
        line = refused("search", text_recipe, *overrides, "--run", tmp_path / "run", says=says)
        assert not (tmp_path / "run").exists()
        return line

    return run


# -- the recipe ---------------------------------------------------------------------------------------------------

RECIPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "misspelt model": (("model=no-such/bert-tiny",), ("no-such/bert-tiny", "spelling")),
    "misspelt data set": (("task.train=no-such/data:train",), ("no-such/data", "spelling")),
    "misspelt data set without a slash": (("task.train=sst3:train",), ("`sst3`", "spelling")),
    "missing data file": (("task.test=nowhere/test.csv",), ("nowhere/test.csv", "task.test")),
    "missing text column": (("task.text=review",), ("`review`", "sentence", "task.text")),
    "missing label column": (("task.label=stars",), ("`stars`", "sentence", "task.label")),
    "text column of numbers": (("task.text=label",), ("task.text", "`label`", "int64")),
    "FFN above the parent's": (("space.intermediate_size=[24, 200]",), ("space.intermediate_size", "96", "200")),
    "heads above the parent's": (("space.num_attention_heads=[8]",), ("space.num_attention_heads", "4", "8")),
    "empty list": (("space.num_hidden_layers=[]",), ("space.num_hidden_layers", "[]", "leave it out")),
    "zero layers": (("space.num_hidden_layers=[0, 2]",), ("space.num_hidden_layers", "between 1", "[0]")),
    "nothing but skipped": (("space.num_attention_heads=[0]",), ("space.num_attention_heads", "with other choices")),
    "skips in a uniform space": (("space.scope=uniform", "space.num_attention_heads=[0, 2]"), ("between 1", "[0]")),
    "hidden size above the parent's": (("space.hidden_size=[96]",), ("space.hidden_size", "48", "96")),
    "a dimension of other families": (("space.num_key_value_heads=[1, 2]",), ("space.num_key_value_heads", "bert")),
    "a rank of no embeddings": (("space.embedding_rank=[0.001]",), ("space.embedding_rank", "at least 0.01", "0.001")),
    "negative choice": (("space.intermediate_size=[-8, 24]",), ("space.intermediate_size", "[-8]")),
    "not a list": (("space.intermediate_size=24",), ("`space.intermediate_size`", "valid list", "24")),
    "tiny space": (("space.scope=uniform", "space.num_hidden_layers=[4]"), ("`space`", "at least 10", "6")),
    "unknown key": (("modle=x",), ("`modle`", "did you mean `model`")),
    "unknown key in a section": (("search.evaluation=3",), ("`search.evaluation`", "did you mean `evaluations`")),
    "unknown key in the workload": (("workload.batchsize=3",), ("`workload.batchsize`", "did you mean `batch_size`")),
    "unknown section": (("searching.evaluations=3",), ("`searching`", "did you mean `search`")),
    "value for a section": (("search=3",), ("`search`", "3")),
    "key below a value": (("model.name=3",), ("`model.name`", "`model` is a value")),
    "wrong type": (("search.evaluations=many",), ("`search.evaluations`", "integer", "'many'")),
    "wrong type in a union": (("task.text=5",), ("`task.text`", "(got 5)")),
    "negative count": (("search.evaluations=0",), ("`search.evaluations`", "0")),
    "unknown dtype": (("workload.dtype=int3",), ("`workload.dtype`", "float32", "int3")),
    "zero threads": (("workload.threads=0",), ("`workload.threads`", "at least 1", "0")),
    "a batch beyond any memory": (("workload.batch_size=1000000000000",), ("fit in memory", "`workload.batch_size`")),
    "missing device": (("workload.device=cuda:77",), ("`workload.device`", "cuda:77", "workload.device=")),
    "unknown objective": (("objectives.latency=minimize",), ("`objectives.latency`", "latency_ms")),
    "wrong direction": (("objectives.accuracy=minimize",), ("`objectives.accuracy`", "maximize")),
    "no direction": (("objectives.accuracy=up",), ("`objectives.accuracy`", "maximize", "up")),
    "objectives without a cost": (("objectives={accuracy: maximize}",), ("`objectives`", "a cost", "latency_ms")),
    "unknown constraint": (("constraints.size='<= 3'",), ("`constraints.size`", "size_mb")),
    "cache of an encoder": (("constraints.kv_cache_mb='<= 3'",), ("`kv_cache_mb`", "model that generates", "leave")),
    "unreadable constraint": (("constraints.size_mb=small",), ("`constraints.size_mb`", "small", "<= 40")),
    "unknown sampler": (("search.sampler=TPE",), ("`search.sampler`", "TPE", "TPESampler")),
    "unknown sampler option": (("search.sampler_options.gama=3",), ("`search.sampler_options`", "gama")),
    "bad sampler option": (
        ("search.sampler=NSGAIISampler", "search.sampler_options.population_size=0"),
        ("`search.sampler_options`", "population_size"),
    ),
    "override without a value": (("search.evaluations",), ("section.key=value", "search.evaluations")),
    "override that is not YAML": (("search.evaluations=[3",), ("`search.evaluations`", "YAML", "[3")),
    "task of another family": (("task.type=image-classification",), ("`task.type`", "bert", "text-classification")),
    "unknown task": (("task.type=translation",), ("`task.type`", "text-classification", "translation")),
    "search slice of all data": (("task.search_examples=108",), ("`task.search_examples`", "108")),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe_that_cannot_be(case: str, not_started: Refused) -> None:
    overrides, says = RECIPES[case]
    not_started(*overrides, says=says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"model: [", ("recipe.yaml", "YAML")),
        (b"model: \xff\xfe", ("recipe.yaml", "YAML")),
        (b"- model", ("recipe.yaml", "mapping", "list")),
        (b"", ("recipe.yaml", "mapping")),
        (b"model: x\nspace: {}", ("`task`", "is required")),
    ],
)
def test_a_recipe_file_that_is_none(
    text: bytes, says: tuple[str, ...], text_recipe: Path, not_started: Refused
) -> None:
    text_recipe.write_bytes(text)
    not_started(says=says)


def test_a_recipe_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    refused("search", tmp_path / "none.yaml", says=("none.yaml", "there is no"))


@pytest.mark.parametrize("arguments", [("search",), ("serach", "recipe.yaml"), ("show", "--wehre", "x"), ("export",)])
def test_a_command_line_that_cannot_be_read(arguments: tuple[str, ...], refused: Refused) -> None:
    refused(*arguments, says=("nas --help",))


# -- the model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": 50}, ("num_attention_heads", "divide", "50", "4")),
        ({"model_type": "longformer"}, ("longformer", "gpt2", "vit")),
        ({"model_type": "bret"}, ("bret",)),
    ],
)
def test_a_model_that_cannot_be_searched(
    change: dict[str, Any], says: tuple[str, ...], text_folder: Path, not_started: Refused
) -> None:
    config = text_folder / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    not_started(says=says)


def test_a_model_with_a_truncated_config(text_folder: Path, not_started: Refused) -> None:
    cut(text_folder / "model" / "config.json")
    assert "there is no model" not in not_started(says=("model", "config.json"))


def test_a_model_without_a_tokenizer(text_folder: Path, not_started: Refused) -> None:
    for file in (text_folder / "model").glob("tokenizer*"):
        file.unlink()
    not_started(says=("model", "Tokenizer"))


def test_a_head_with_more_classes_than_the_data(text_folder: Path, not_started: Refused) -> None:
    bert(num_labels=3).save_pretrained(text_folder / "model")
    not_started(says=("head", "has 3", "data 2"))


def test_a_model_with_truncated_weights(text_folder: Path, not_started: Refused) -> None:
    bert(num_labels=2).save_pretrained(text_folder / "model")
    cut(text_folder / "model" / "model.safetensors")
    assert "delete" not in not_started(says=("weights", str(text_folder / "model")))


# -- the data -----------------------------------------------------------------------------------------------------


def with_labels(source: Path, change: Callable[[int, Any], Any]) -> pd.DataFrame:
    rows = pd.read_parquet(source) if source.suffix == ".parquet" else pd.read_csv(source)
    return rows.assign(label=[change(k, label) for k, label in enumerate(rows["label"])])


LABELS: dict[str, tuple[str, Callable[[int, Any], Any], tuple[str, ...]]] = {
    "unknown to the training data": ("test.csv", lambda k, v: 7 if k == 3 else v, ("test.csv", "7", "['0', '1']")),
    "unlabelled test": ("test.csv", lambda k, v: -1, ("test.csv", "unlabelled", "-1", "choose another")),
    "missing labels": ("test.csv", lambda k, v: None if k == 2 else v, ("test.csv", "unlabelled", "None")),
    "one class only": ("train.parquet", lambda k, v: 1, ("train.parquet", "two classes", "1")),
    "several labels a row": ("train.parquet", lambda k, v: [v], ("test.csv", "lists of classes", "task.label")),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_cannot_be(case: str, text_folder: Path, not_started: Refused) -> None:
    file, change, says = LABELS[case]
    rows = with_labels(text_folder / file, change)
    if file == "test.csv":
        rows.to_csv(text_folder / file, index=False)
    else:
        rows.to_parquet(text_folder / file)
    not_started(says=says)


PYTHON = """
from datasets import ClassLabel, Dataset, Features, Value

def rows(labels, names=("bad", "good")):
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"sentence": ["the film"] * len(labels), "label": labels}, features=features)

def train():
    return rows([0, 1] * 40)

def unlabelled():
    return rows([-1] * 10)

def others():
    return rows([0, 1], ("no", "yes"))

def nothing():
    return rows([])

def numbers():
    return 3

def broken():
    return 1 / 0
"""


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("unlabelled", ("unlabelled", "-1")),
        ("others", ("['bad', 'good']", "['no', 'yes']")),
        ("nothing", ("must hold examples",)),
        ("numbers", ("datasets.Dataset", "int")),
        ("broken", ("division by zero",)),
        ("missing", ("`missing`", "function")),
    ],
)
def test_data_of_a_function_that_cannot_be(
    function: str, says: tuple[str, ...], text_folder: Path, not_started: Refused
) -> None:
    source = text_folder / "data.py"
    source.write_text(PYTHON)
    not_started(f"task.train={source}:train", f"task.test={source}:{function}", says=("data.py", *says))


def test_missing_texts(text_folder: Path, not_started: Refused) -> None:
    rows = pd.read_csv(text_folder / "test.csv")
    rows.loc[1, "sentence"] = None
    rows.to_csv(text_folder / "test.csv", index=False)
    not_started(says=("test.csv", "`sentence`", "empty"))


def test_a_file_that_is_not_what_its_name_says(text_folder: Path, not_started: Refused) -> None:
    cut(text_folder / "train.parquet")
    not_started(says=("train.parquet", "cannot be read"))


@pytest.mark.parametrize(
    ("column", "says"), [("photo", ("`photo`", "task.image")), ("label", ("`label`", "images", "task.image"))]
)
def test_a_missing_image_column(column: str, says: tuple[str, ...], refused: Refused, tmp_path: Path) -> None:
    from conftest import TOYS
    from PIL import Image
    from transformers import ViTImageProcessor

    TOYS["vit"].model().config.save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    for k in range(12):
        (tmp_path / "images" / f"class{k % 3}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (k, k, k)).save(tmp_path / "images" / f"class{k % 3}" / f"{k}.png")
    task = {"type": "image-classification", "train": "images", "test": "images", "search_examples": 4}
    recipe = {"model": "model", "task": task, "space": {"num_hidden_layers": [2, 3, 4]}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    refused("search", tmp_path / "recipe.yaml", f"task.image={column}", "--run", tmp_path / "run", says=says)
    assert not (tmp_path / "run").exists()


# -- the run ------------------------------------------------------------------------------------------------------


def cut(file: Path) -> None:
    """Loses the second half of a file."""
    os.truncate(file, file.stat().st_size // 2)


def forget(run: Path, *names: str) -> None:
    """Removes results of a run, so that their stages are due again."""
    for name in names:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_run_of_another_recipe(finished: tuple[Path, Path], refused: Refused) -> None:
    recipe, run = finished
    before = contents(run)
    says = ("another recipe", "parent.epochs: 9.0, was 4.0", "--run")
    refused("search", recipe, "parent.epochs=9", "search.evaluations=25", "--run", run, says=says)
    assert contents(run) == before


def test_a_second_process_on_the_same_run(finished: tuple[Path, Path], refused: Refused) -> None:
    recipe, run = finished
    before = contents(run)
    with FileLock(run / ".lock"):
        refused("search", recipe, "--run", run, says=("another process", str(run), "wait"))
    assert contents(run) == before


SEARCHED = ("study.log", "trials.csv", "verified.jsonl", "front.json", "report.html")
DAMAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "parent/model.safetensors": (("supernet", "predictor", *SEARCHED), "parent"),
    "supernet/model.safetensors": (SEARCHED, "supernet"),
    "supernet/importance.json": (SEARCHED, "supernet"),
    "predictor/predictor.json": (SEARCHED, "predictor/predictor.json"),
    "measurements.jsonl": (("predictor", *SEARCHED), "measurements.jsonl"),
    "study.log": (("verified.jsonl", "front.json", "report.html"), "study.log"),
    "verified.jsonl": (("front.json", "report.html"), "verified.jsonl"),
    "front.json": ((), "front.json"),
}
"""File to damage -> results that a killed search would not have yet, and what the way out says to delete; the knee's
export, which a process of its own checks, goes only where the weights do."""


def damage(file: Path) -> None:
    """Truncates a file that is read at once; puts a torn line into the middle of one that grows by lines."""
    if file.suffix in (".jsonl", ".log"):
        lines = file.read_bytes().splitlines(keepends=True)
        lines[2] = lines[2][:20] + b"\n"
        file.write_bytes(b"".join(lines))
    else:
        cut(file)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_result_is_named(name: str, finished: tuple[Path, Path], refused: Refused) -> None:
    recipe, run = finished
    later, delete = DAMAGES[name]
    forget(run, *later)
    damage(run / name)
    before = contents(run)
    refused("search", recipe, "--run", run, says=(f"`{run / delete}`", "again"))
    after = contents(run)
    assert after.keys() == before.keys() and all(after[file].startswith(data) for file, data in before.items())


MARKS = dict.fromkeys(("parent/model.safetensors", "measurements.jsonl"), pytest.mark.slow)
MARKS |= dict.fromkeys(("supernet/model.safetensors", "supernet/importance.json"), pytest.mark.full)
"""Those without which there is a training or everything to measure."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[MARKS[n]] if n in MARKS else []) for n in DAMAGES])
def test_deleting_a_damaged_result_helps(name: str, finished: tuple[Path, Path]) -> None:
    recipe, run = finished
    later, delete = DAMAGES[name]
    forget(run, *later)
    damage(run / name)
    forget(run, delete)
    search(Recipe.load(recipe), run)
    assert (run / "front.json").exists() and any((run / "exports").iterdir())


@pytest.mark.parametrize(
    "name", ["study.log", pytest.param("measurements.jsonl", marks=pytest.mark.slow), "verified.jsonl"]
)
def test_a_line_that_a_kill_cut_short_is_done_again(name: str, finished: tuple[Path, Path]) -> None:
    recipe, run = finished
    forget(run, *DAMAGES[name][0])
    whole = (run / name).read_bytes()
    with open(run / name, "ab") as file:
        file.write(whole.splitlines()[-1][:-10])
    search(Recipe.load(recipe), run)
    assert (run / name).read_bytes().startswith(whole)
    assert (run / "front.json").exists()


def test_costs_that_nothing_reaches(finished: tuple[Path, Path], refused: Refused) -> None:
    recipe, run = finished
    forget(run, *SEARCHED)
    loaded = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**loaded, "constraints": {"size_mb": "<= 0.01"}}))
    kept = {name: value for name, value in contents(run).items() if name != "study.log"}
    says = ("the closest", "reaches size_mb 0.0", "`<= 0.01`", "Loosen")
    refused("search", recipe, "constraints.size_mb='<= 0.01'", "--run", run, says=says)
    assert {name: contents(run)[name] for name in kept} == kept


def test_a_latency_constraint_is_judged_on_the_measured_exports(finished: tuple[Path, Path]) -> None:
    """Everything is within the constraint as predicted, half of it as measured."""
    _, run = finished
    measured = {point.key: point.values["latency_ms"] for point in Run(run).verified_points()}
    bound = sorted(measured.values())[len(measured) // 2]
    forget(run, "front.json", "report.html", "exports")
    loaded = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**loaded, "constraints": {"latency_ms": f"<= {bound}"}}))
    context = TaskContext(Run(run).recipe)
    run_search(Run(run), context)  # what it has evaluated is judged anew
    run_verify(Run(run), context)
    result = {point.key: point for point in Run(run).verified_points()}
    assert {point.values["latency_ms"] <= bound for point in Run(run).front()} == {True}
    assert all(p.values["latency_ms"] == measured[key] for key, p in result.items() if key in measured)
    assert {p.feasible for p in result.values()} == {True, False}
    assert all(p.feasible == (p.values["latency_ms"] <= bound) for p in result.values())


def test_a_runtime_that_is_not_installed(not_started: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("predictors.measurement.onnx_export.find_spec", lambda name: None)
    says = ("onnxruntime", 'pip install "paretoformer[onnx]"')
    not_started("workload.runtime=onnxruntime", says=says)


def test_a_metric_that_nothing_reaches(finished: tuple[Path, Path], refused: Refused) -> None:
    recipe, run = finished
    forget(run, *SEARCHED)
    loaded = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**loaded, "constraints": {"loss": "<= 0"}}))
    kept = contents(run)
    says = ("no subnetwork meets", "closest of 24 reaches loss", "`<= 0`", "Loosen")
    refused("search", recipe, "constraints.loss='<= 0'", "--run", run, says=says)
    assert {name: contents(run)[name] for name in kept} == kept


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "{empty}"), ("run", "recipe.yaml", "nas search")),
        (("show", "{none}"), ("run", "recipe.yaml", "nas search")),
        (("export", "{empty}", "--out", "{new}"), ("run", "recipe.yaml", "nas search")),
        (("show", "{run}", "--where", "latency <= 5"), ("`latency`", "did you mean `latency_ms`")),
        (("show", "{run}", "--where", "fast"), ("condition", "fast", "latency_ms <= 5")),
        (("export", "{run}", "--pick", "knees", "--out", "{new}"), ("knees", "did you mean `knee`")),
        (("export", "{run}", "--pick", "accuracy > 2", "--out", "{new}"), ("accuracy > 2", "closest", "loosen")),
        (("export", "{run}", "--out", "{empty}"), ("is not an export", "--out")),
        (("finetune", "{empty}", "{recipe}", "--run", "{run}"), ("must be an export", "subnet.json")),
        (("bench", "no-such/bert", "--workload", "{recipe}"), ("no-such/bert", "spelling")),
        (("bench", "no-such/bert", "--workload", "{recipe}", "--precision", "2"), ("between 0 and 1", "got 2")),
        (("bench", "no-such/bert", "--workload", "{recipe}", "--csv", "{new}/b.csv"), ("`--csv`", "new/b.csv")),
        (("bench", "no-such/bert", "--workload", "{recipe}", "--csv", "{empty}"), ("`--csv`", "empty", "a file")),
        (("compare", "{run}", "{run}", "--out", "{new}/plot.html"), ("`--out`", "new/plot.html", "create the folder")),
        (("profile", "{recipe}", "--run", "{run}", "--export", "{new}"), ("is measured on this device", "--run")),
        (("profile", "{recipe}", "--export", "{new}", "--import", "{empty}"), ("two commands", "in between")),
        (("profile", "{recipe}", "--run", "{none}", "--import", "{empty}"), ("recipe.yaml", "nas search")),
        (("profile", "{recipe}", "--run", "{run}", "--import", "{empty}"), ("plan.json", "--export")),
    ],
)
def test_folders_and_picks_that_cannot_be(
    arguments: tuple[str, ...], says: tuple[str, ...], finished: tuple[Path, Path], refused: Refused, tmp_path: Path
) -> None:
    recipe, _ = finished
    (tmp_path / "empty").mkdir()
    places = {name: tmp_path / name for name in ("empty", "none", "new", "run")} | {"recipe": recipe}
    before = contents(tmp_path)
    refused(*(argument.format(**places) for argument in arguments), says=says)
    assert contents(tmp_path) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("model", "length", "says"),
    [
        ("bert", 65, ("`workload.sequence_length`", "64 positions", "bert`", "got 65", "leave the model out")),
        ("roberta", 64, ("`workload.sequence_length`", "62 positions", "roberta`", "got 64")),
        ("gpt2", 200, ("`workload.sequence_length`", "64 positions", "gpt2`", "got 200")),
        ("squeezebert", 65, ("`workload.sequence_length`", "64 positions", "squeezebert`", "got 65")),
        ("bert", None, ("`workload.sequence_length`", "got null", "good`")),
        ("vit", 16, ("vit`", "text-classification", "--workload")),
    ],
)
def test_models_that_do_not_fit_a_bench(
    model: str, length: int | None, says: tuple[str, ...], text_recipe: Path, refused: Refused, tmp_path: Path
) -> None:
    """Also of a family that has no table; the first model would do."""
    recipe = yaml.safe_load(text_recipe.read_text())
    text_recipe.write_text(yaml.safe_dump({**recipe, "workload": {"sequence_length": length}}))
    bert(max_position_embeddings=256).save_pretrained(tmp_path / "good")
    sizes = TOYS[model].config if model in TOYS else {**SIZES, **TEXT}
    AutoConfig.for_model(model, **sizes).save_pretrained(tmp_path / model)
    refused("bench", tmp_path / "good", tmp_path / model, "--workload", text_recipe, says=says)


def test_a_bench_whose_input_fits_in_no_memory(text_recipe: Path, refused: Refused, tmp_path: Path) -> None:
    recipe = yaml.safe_load(text_recipe.read_text())
    text_recipe.write_text(yaml.safe_dump({**recipe, "workload": {"sequence_length": 16, "batch_size": 10**12}}))
    bert().save_pretrained(tmp_path / "good")
    refused("bench", tmp_path / "good", "--workload", text_recipe, says=("must fit in memory", "workload.batch_size"))


# -- a process of its own -----------------------------------------------------------------------------------------


def test_the_real_command_prints_one_line_and_no_warnings(text_recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nas.cli", "search", text_recipe, "task.text=review", "--run", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    one_line(done.returncode, done.stderr, ("`review`",))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small disk of its own, of any size and then of another."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size: str) -> Path:
        options = f"size={size}" + (",remount" if os.path.ismount(folder) else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("only root may mount a small disk")
        return folder

    if os.geteuid():
        pytest.skip("only root may mount a small disk")
    yield resize
    if os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # weights may still be mapped


def test_a_file_system_that_is_read_only(
    finished: tuple[Path, Path], disk: Callable[[str], Path], refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run on it can be read, and nothing can be written; one line says so."""
    recipe, other = finished
    place = disk("64m")
    shutil.copytree(other, place / "run")
    export = next((place / "run" / "exports").glob("[!.]*"))
    before = contents(place)
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    try:
        for words in (["show", place / "run"], ["watch", place / "run", "--once"]):
            app([str(word) for word in words], standalone_mode=False)
        assert "front" in capsys.readouterr().out
        for run in ("run", "new", "new/run"):
            refused("search", recipe, "--run", place / run, says=(str(place),))
        refused("export", place / "run", "--out", place / "new", says=("--out", str(place)))
        refused("compare", place / "run", other, "--out", place / "plot.html", says=("Read-only",))
        refused("convert", export, "--to", "onnx")
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
    assert contents(place) == before


STAGES: dict[str, tuple[str, ...]] = {
    "parent": (),
    "supernet": ("parent",),
    "profile": ("parent", "supernet"),
    "search": ("parent", "supernet", "measurements.jsonl", "predictor"),
    "verify": ("parent", "supernet", "measurements.jsonl", "predictor", *SEARCHED[:2]),
    "report": ("parent", "supernet", "measurements.jsonl", "predictor", *SEARCHED[:4]),
    "export": ("parent", "supernet", "measurements.jsonl", "predictor", *SEARCHED),
}
"""Stage -> what the stages before it have written."""


@pytest.mark.full
@pytest.mark.parametrize("free_kb", [8, 200])
@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_is_full_in_any_stage(
    stage: str, free_kb: int, finished: tuple[Path, Path], disk: Callable[[str], Path]
) -> None:
    recipe, other = finished
    place = disk("64m")
    run = place / "run"
    for name in ("recipe.yaml", "environment.json", *STAGES[stage]):
        run.mkdir(exist_ok=True)
        copy = shutil.copytree if (other / name).is_dir() else shutil.copy2
        copy(other / name, run / name)
    before, used = contents(run), shutil.disk_usage(place).used
    disk(f"{used // 1024 + free_kb}k")
    stopped = Command("search", recipe, "--run", run)
    stderr = stopped.communicate()[1]
    if stopped.returncode != 0:
        one_line(stopped.returncode, stderr, ("disk", "ree some space"))
    after = contents(run)
    assert all(after[name][: len(data)] == data for name, data in before.items())
    disk("64m")
    again = Command("search", recipe, "--run", run)
    stderr = again.communicate(timeout=900)[1]
    assert again.returncode == 0, stderr
    assert any((run / "exports").iterdir()) and not list(run.glob("*.partial"))
    for name, data in after.items():
        if name.endswith(".jsonl"):  # a line that the full disk cut short is written again, whole ones are not
            assert (run / name).read_bytes().startswith(data[: data.rfind(b"\n") + 1]), name


@pytest.mark.parametrize(
    ("size", "done"),
    [
        pytest.param("4k", (), marks=pytest.mark.full),
        pytest.param("700k", (), marks=pytest.mark.full),
        pytest.param("900k", ("parent",), marks=pytest.mark.slow),
        ("800k", ("parent", "supernet", "measurements.jsonl", "predictor")),
        pytest.param(
            "2m", ("parent", "supernet", "measurements.jsonl", "predictor", *SEARCHED[:4]), marks=pytest.mark.slow
        ),
    ],
)
def test_a_full_disk(
    size: str, done: tuple[str, ...], finished: tuple[Path, Path], disk: Callable[[str], Path]
) -> None:
    recipe, other = finished
    run = disk(size) / "run"
    for name in ("recipe.yaml", "environment.json", *done) if done else ():
        run.mkdir(exist_ok=True)
        copy = shutil.copytree if (other / name).is_dir() else shutil.copy2
        copy(other / name, run / name)
    before = contents(run)
    stopped = Command("search", recipe, "--run", run)
    stderr = stopped.communicate()[1]
    one_line(stopped.returncode, stderr, ("disk is full", "Free some space"))
    after = contents(run)
    assert all(after[name][: len(data)] == data for name, data in before.items())
    disk("64m")
    run.mkdir(exist_ok=True)
    shutil.copy(other / "measurements.jsonl", run)  # what takes longest
    again = Command("search", recipe, "--run", run)
    stderr = again.communicate()[1]
    assert again.returncode == 0, stderr
    assert any((run / "exports").iterdir()) and not list(run.glob("*.partial"))

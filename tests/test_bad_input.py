"""Law 9: a bad input gets one clear line, exit code 2, and nothing half-written or lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from refusals import Refused, cut, one_line
from toys import SIZES, TEXT, TOYS, bert
from transformers import AutoConfig


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
        ({"model_type": "longformer"}, ("`longformer`", "`nas families longformer`")),
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
    from PIL import Image
    from toys import TOYS
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


def test_a_runtime_that_is_not_installed(not_started: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("predictors.measurement.onnx_export.find_spec", lambda name: None)
    says = ("onnxruntime", 'pip install "paretoformer[onnx]"')
    not_started("workload.runtime=onnxruntime", says=says)


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

"""Data sources, labels and their order, texts and images: from the recipe to the inputs of the model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from toys import Toy, bert

from nas.recipe.schema import Recipe
from nas.recipe.text import split_source
from nas.tasks.context import TaskContext
from nas.tasks.data import load_source, text_columns
from nas.tasks.labels import with_class_ids
from search_spaces import InputError

NAMED = {0: "bad", 1: "good"}


def relabel(folder: Path, labels: Any) -> None:
    """Replaces the labels 0 and 1 of `text_folder`, in both of its files."""
    for file, read, write in (("train.parquet", pd.read_parquet, "to_parquet"), ("test.csv", pd.read_csv, "to_csv")):
        rows = read(folder / file)
        rows = rows.assign(label=[labels[k] for k in rows["label"]])
        getattr(rows, write)(folder / file, index=False)


def with_head(folder: Path, names: dict[int, str] | None = None, **changes: Any) -> None:
    """Gives the model of `text_folder` weights and a head with these class names."""
    model = bert(num_labels=2, **changes)
    model.config.id2label = names or model.config.id2label
    model.config.label2id = {name: k for k, name in model.config.id2label.items()}
    model.save_pretrained(folder / "model")


def context_of(recipe: Path, *overrides: str) -> TaskContext:
    return TaskContext(Recipe.load(recipe, overrides))


def good_ids(context: TaskContext) -> set[int]:
    """Class ids of the training texts that end in "good", after processing."""
    good = context.processor.convert_tokens_to_ids("good")
    return {row["labels"] for row in context.splits.train if good in row["input_ids"]}


# -- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("0", "1"), ["0", "1"]),
        (("negative", "positive"), ["negative", "positive"]),
        ((False, True), ["False", "True"]),
        ((3, 12), ["3", "12"]),
        (("3", "12"), ["3", "12"]),
        ((1.0, 2.0), ["1", "2"]),
    ],
)
def test_labels_of_every_type_become_class_ids(labels: tuple[Any, Any], names: list[str], text_recipe: Path) -> None:
    relabel(text_recipe.parent, labels)
    context = context_of(text_recipe)
    assert context.splits.task.names == names
    assert good_ids(context) == {1}
    batch = context.splits.task.collate([context.splits.train[0], context.splits.train[1]])
    assert batch["labels"].dtype == torch.int64
    assert {label for batch in context.splits.test.batches for label in batch["labels"].tolist()} == {0, 1}
    assert context.load_model().config.id2label == dict(enumerate(names))


def test_large_strings_become_class_ids() -> None:
    features = Features({"label": Value("large_string")})
    data, names = with_class_ids(Dataset.from_dict({"label": ["b", "a"]}, features=features), "label", None, "toy")
    assert (data["label"][:], names, data.features["label"]) == ([1, 0], ["a", "b"], ClassLabel(names=["a", "b"]))


def test_single_labels_override_the_problem_type_of_the_config(text_recipe: Path) -> None:
    with_head(text_recipe.parent, problem_type="multi_label_classification")
    context = context_of(text_recipe)
    model = context.load_model()
    batch = context.splits.task.collate([context.splits.train[0], context.splits.train[1]])
    assert model.config.problem_type == "single_label_classification"
    expected = torch.nn.functional.cross_entropy(model(**batch).logits, batch["labels"])
    torch.testing.assert_close(model(**batch).loss, expected)


# -- the order of a trained head's classes ------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [("bad", "good"), ("Bad", "GOOD")])
def test_the_data_follows_the_order_of_a_trained_head(labels: tuple[str, str], text_recipe: Path) -> None:
    head = {0: "GOOD", 1: "BAD"}
    relabel(text_recipe.parent, labels)
    with_head(text_recipe.parent, head)
    context = context_of(text_recipe)
    assert good_ids(context) == {0}
    assert context.splits.task.names == ["GOOD", "BAD"]
    assert context.load_model().config.id2label == head


@pytest.mark.parametrize("labels", [(0, 1), ("0", "1"), (1, 2)])
def test_integer_labels_keep_the_names_and_ids_of_a_trained_head(labels: tuple[Any, Any], text_recipe: Path) -> None:
    head = {0: "terrible", 1: "lovely"}
    relabel(text_recipe.parent, labels)
    with_head(text_recipe.parent, head)
    context = context_of(text_recipe)
    assert good_ids(context) == {1}
    assert context.load_model().config.id2label == head


def test_labels_that_a_trained_head_does_not_have_are_refused(text_recipe: Path) -> None:
    relabel(text_recipe.parent, ("bad", "good"))
    with_head(text_recipe.parent, {0: "no", 1: "yes"})
    with pytest.raises(InputError, match=r"\['no', 'yes'\] and the data \['bad', 'good'\]"):
        _ = context_of(text_recipe).splits


def test_names_without_ids_are_refused_by_a_head_without_names(text_recipe: Path) -> None:
    relabel(text_recipe.parent, ("bad", "good"))
    with_head(text_recipe.parent)
    with pytest.raises(InputError, match=r"LABEL_0.*'bad'"):
        _ = context_of(text_recipe).splits


def test_ids_of_the_data_number_the_outputs_of_a_head_without_names(
    text_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (text_recipe.parent / "data.py").write_text(
        "import pandas as pd\n"
        "from datasets import ClassLabel, Dataset\n"
        "def train():\n"
        f"    rows = pd.read_parquet('{text_recipe.parent}/train.parquet')\n"
        "    return Dataset.from_pandas(rows).cast_column('label', ClassLabel(names=['good?', 'bad?']))\n"
    )
    with_head(text_recipe.parent)
    source = f"{text_recipe.parent}/data.py:train"
    context = context_of(text_recipe, f"task.train={source}", f"task.test={source}")
    assert good_ids(context) == {1}
    assert "LABEL_0 = good?, LABEL_1 = bad?" in capsys.readouterr().out


def test_a_model_of_a_run_loads_without_data(text_recipe: Path, tmp_path: Path) -> None:
    relabel(text_recipe.parent, ("bad", "good"))
    context_of(text_recipe).load_model().save_pretrained(tmp_path / "parent")
    recipe = Recipe.load(text_recipe)
    for file in ("train.parquet", "test.csv"):
        shutil.move(text_recipe.parent / file, tmp_path / file)
    assert TaskContext(recipe).load_model(tmp_path / "parent").config.id2label == NAMED


# -- images -------------------------------------------------------------------------------------------------------


def image_context(folder: Path, channels: int, size: int = 8, mean: int | None = None) -> TaskContext:
    """A ViT for 8x8 images of three classes, and a processor that resizes to ``size``."""
    from PIL import Image
    from transformers import ViTImageProcessor

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    model = Toy("vit", {**sizes, "image_size": 8, "patch_size": 2, "num_channels": channels}).model()
    model.config.save_pretrained(folder / "model")
    means = [0.5] * (mean or channels)
    processor = ViTImageProcessor(size={"height": size, "width": size}, image_mean=means, image_std=means)
    processor.save_pretrained(folder / "model")
    for k in range(12):
        (folder / "images" / f"class{k % 3}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 6), (k, k, k)).save(folder / "images" / f"class{k % 3}" / f"{k}.png")
    task = {"type": "image-classification", "train": f"{folder}/images", "test": f"{folder}/images"}
    recipe = {"model": f"{folder}/model", "task": {**task, "search_examples": 4}, "space": {}}
    return TaskContext(Recipe.parse(recipe))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_have_the_channels_of_the_model(channels: int, tmp_path: Path) -> None:
    context = image_context(tmp_path, channels)
    batch = context.splits.test.batches[0]
    assert batch["pixel_values"].shape == (12, channels, 8, 8)
    assert context.load_model()(**batch).logits.shape == (12, 3)


@pytest.mark.parametrize(
    ("processor", "message"),
    [({"size": 16}, r"\(3, 8, 8\).*\(3, 16, 16\)"), ({"mean": 1}, r"\(3, 8, 8\).*image_mean")],
)
def test_a_processor_that_does_not_fit_the_model_is_refused(
    processor: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        _ = image_context(tmp_path, 3, **processor).splits


# -- sources ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (r"C:\data\x.csv", (r"C:\data\x.csv", "")),
        ("C:/data/images", ("C:/data/images", "")),
        (r"C:\data\x.py:train", (r"C:\data\x.py", "train")),
        ("folder/file.py:function", ("folder/file.py", "function")),
        ("we:ird/file.py:function", ("we:ird/file.py", "function")),
        ("hub/id:split", ("hub/id", "split")),
        ("hub/id:train[:10%]+test[5:9]", ("hub/id", "train[:10%]+test[5:9]")),
        ("hub/id", ("hub/id", "")),
    ],
)
def test_a_source_is_split_at_the_colon_before_its_part(source: str, parts: tuple[str, str]) -> None:
    assert split_source(source) == parts


def test_a_path_with_a_colon_is_one_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pd.DataFrame({"label": [0, 1]}).to_csv(tmp_path / "a:b.csv", index=False)
    monkeypatch.chdir(tmp_path)
    assert len(load_source("a:b.csv")) == len(load_source(f"{tmp_path}/a:b.csv")) == 2


def test_paths_of_a_recipe_are_absolute_with_their_part(text_recipe: Path) -> None:
    folder = text_recipe.parent
    (folder / "d:ata.py").write_text("")
    (folder / "a:b.csv").write_text("")
    text = text_recipe.read_text().replace("train.parquet", "d:ata.py:train").replace("test.csv", "a:b.csv")
    text_recipe.write_text(text)
    task = Recipe.load(text_recipe).task
    assert (task.train, task.test) == (f"{folder}/d:ata.py:train", f"{folder}/a:b.csv")


def test_an_override_changes_no_other_path(text_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text_recipe.write_text(text_recipe.read_text().replace("model: model", "model: org/name"))
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "here.csv").write_text("")
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load(text_recipe, ["search.evaluations=9", "task.train=here.csv"])
    assert (recipe.model, recipe.task.train) == ("org/name", f"{tmp_path}/here.csv")
    assert Recipe.load(text_recipe, ["model=org/name"]).model == f"{tmp_path}/org/name"


# -- texts --------------------------------------------------------------------------------------------------------


def test_inferred_text_columns_are_printed_once(text_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file, read, write in (("train.parquet", pd.read_parquet, "to_parquet"), ("test.csv", pd.read_csv, "to_csv")):
        rows = read(text_recipe.parent / file).assign(source="film")
        getattr(rows, write)(text_recipe.parent / file, index=False)
    _ = context_of(text_recipe).splits
    assert capsys.readouterr().out.count("using columns `sentence`, `source`") == 1
    _ = context_of(text_recipe, "task.text=sentence").splits
    assert "pairs" not in capsys.readouterr().out


def test_a_single_text_column_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    data = Dataset.from_dict({"text": ["good", "bad"], "label": [1, 0]})
    assert text_columns(data, None, "toy") == ["text"]
    assert not capsys.readouterr().out

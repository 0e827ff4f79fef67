"""What a search and `nas check` say of the data before training; images that cannot be decoded are named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from toy_tasks import Make
from toys import Toy

from nas.cli import main
from nas.recipe.schema import Recipe
from nas.stages.check import check_recipe
from nas.stages.parent_check import check_parent
from nas.tasks.context import TaskContext
from nas.tasks.images import convert_image
from nas.tasks.overview import data_lines
from search_spaces import InputError


def lines_of(context: TaskContext) -> dict[str, str]:
    """First word of a line -> the rest of it."""
    return {line[:10].strip(): line[11:] for line in data_lines(context)}


def test_the_data_is_described(text_recipe: Path) -> None:
    lines = lines_of(TaskContext(Recipe.load(text_recipe)))
    assert lines["data"] == "train 108 rows (72 to train on, 36 to search on), test 36 rows"
    assert lines["classes"] == "2: 0 54, 1 54" and lines["in test"].startswith("2: 0 18, 1 18")
    assert lines["example"].startswith("the ") and lines["example"].endswith(("-> 0", "-> 1"))
    assert lines["lengths"] == "6 to 8 tokens, half at most 7; `task.max_length` is 16"
    assert lines["duplicates"].startswith("all rows of test are in train too")


def test_a_held_out_split_with_the_rows_of_the_training_split_is_refused(text_recipe: Path) -> None:
    same = text_recipe.parent / "train.parquet"
    with pytest.raises(InputError, match="both hold the same 108"):
        data_lines(TaskContext(Recipe.load(text_recipe, [f"task.test={same}"])))


@pytest.mark.parametrize("name", ["train.parquet", "test.csv"])
def test_a_validation_set_with_the_rows_of_another_split_is_refused(name: str, text_recipe: Path) -> None:
    """The search would read the held-out split, or the rows that were trained on."""
    own = f"task.validation={text_recipe.parent / name}"
    with pytest.raises(InputError, match=r"must hold other rows than `task.*but both hold the same"):
        data_lines(TaskContext(Recipe.load(text_recipe, [own])))


def test_rows_of_a_validation_set_that_are_held_out_too_are_counted(text_recipe: Path) -> None:
    folder = text_recipe.parent
    held_out = pd.read_csv(folder / "test.csv")
    new = held_out.assign(sentence=lambda t: "new " + t["sentence"])
    pd.concat([new, held_out[:3]]).to_csv(folder / "dev.csv", index=False)
    lines = lines_of(TaskContext(Recipe.load(text_recipe, [f"task.validation={folder / 'dev.csv'}"])))
    assert f"3 of {len(held_out)} rows of test are in validation too" in lines["duplicates"]


def test_duplicates_and_cut_texts_are_counted(text_recipe: Path) -> None:
    train = pd.read_parquet(text_recipe.parent / "train.parquet")
    pd.concat([train, train[:5], train[5:7].assign(label=lambda t: 1 - t["label"])]).to_parquet(
        text_recipe.parent / "train.parquet"
    )
    test = pd.read_csv(text_recipe.parent / "test.csv").assign(sentence=lambda t: "new " + t["sentence"])
    pd.concat([test, train[:2]]).to_csv(text_recipe.parent / "test.csv", index=False)
    lines = lines_of(TaskContext(Recipe.load(text_recipe, ["task.max_length=6"])))
    assert (
        "7 rows of train repeat an earlier one (2 with another label)" in lines["duplicates"]
        and "2 of 38 rows of test" in lines["duplicates"]
    )
    assert "100.0% reach `task.max_length` 6 and may be cut" in lines["lengths"]


@pytest.mark.parametrize(
    ("case", "classes", "example"),
    [
        ("regression", "numbers from 0 to 1.5", " -> "),
        ("multi-label", "2: good 54, very 72", " -> ["),
        ("tags", "3: B-MOOD 108, B-THING 108, O ", " -> ["),
        ("masks", None, ""),
        ("answers", None, "good | the"),
        ("pairs", None, "the "),
        ("scored pairs", None, " | "),
        ("speech", None, ""),
    ],
)
def test_the_data_of_every_task_is_described(case: str, classes: str | None, example: str, make: Make) -> None:
    lines = lines_of(make(case))
    assert lines["data"].startswith("train ")
    assert (classes is None) == ("classes" not in lines) and (classes or "") in lines.get("classes", "")
    assert example in lines.get("example", "")


def test_tokens_that_the_tokenizer_does_not_know_are_counted(text_recipe: Path) -> None:
    train = pd.read_parquet(text_recipe.parent / "train.parquet")
    train.assign(sentence="le film est bon").to_parquet(text_recipe.parent / "train.parquet")
    assert "50.0% of the tokens are unknown" in lines_of(TaskContext(Recipe.load(text_recipe)))["lengths"]


def test_many_classes_are_listed_from_both_ends(text_recipe: Path) -> None:
    for file, read, write in (("train.parquet", pd.read_parquet, "to_parquet"), ("test.csv", pd.read_csv, "to_csv")):
        rows = read(text_recipe.parent / file)
        rows = rows.assign(label=[f"c{k % 12}" for k in range(len(rows))])
        getattr(rows, write)(text_recipe.parent / file, index=False)
    assert lines_of(TaskContext(Recipe.load(text_recipe)))["classes"].startswith("12: c0 9, c1 9, c10 9, c11 9, …, ")


# -- images -------------------------------------------------------------------------------------------------------


def image_recipe(folder: Path, **task: Any) -> Path:
    """A recipe for a tiny ViT and a few images of three classes in two folders."""
    from transformers import ViTImageProcessor

    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
    Toy("vit", {**sizes, "image_size": 8, "patch_size": 2}).model().config.save_pretrained(folder / "model")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / "model")
    for split, count in (("train", 24), ("test", 6)):
        for k in range(count):
            file = folder / split / f"class{k % 3}" / f"{k}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((9, 12, 3), 9 * k, np.uint8)).save(file)
    space = {"num_hidden_layers": [1, 2, 3, 4], "num_attention_heads": [1, 2, 4]}
    settings = {"type": "image-classification", "train": "train", "test": "test", "search_examples": 6, **task}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": "model", "task": settings, "space": space}))
    return folder / "recipe.yaml"


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    recipe = image_recipe(tmp_path)
    assert "classes" in lines_of(check_recipe(Recipe.load(recipe)))
    whole = (tmp_path / "train" / "class1" / "1.jpg").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no image"):
        (tmp_path / "train" / "class1" / "cut.jpg").write_bytes(content)
        with pytest.raises(InputError, match=r"`class1/cut\.jpg`.*cannot be decoded"):
            check_recipe(Recipe.load(recipe))


def test_an_image_in_a_table_is_named_by_its_row(tmp_path: Path) -> None:
    import io

    from datasets import Dataset

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 12, 3), np.uint8)).save(buffer, "png")
    images = [{"bytes": buffer.getvalue(), "path": None} for _ in range(12)]
    images[5] = {"bytes": buffer.getvalue()[:40], "path": None}
    recipe = image_recipe(tmp_path, train="train.parquet", test="train.parquet", search_examples=4)
    data = Dataset.from_dict({"image": images, "label": [k % 2 for k in range(12)]})
    from datasets import Image as ImageFeature

    data.cast_column("image", ImageFeature()).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"the image in row 5 of .*train\.parquet.*cannot be decoded"):
        check_recipe(Recipe.load(recipe))


def test_a_test_folder_may_lack_a_class_but_not_have_another(tmp_path: Path) -> None:
    import shutil

    recipe = image_recipe(tmp_path)
    shutil.rmtree(tmp_path / "test" / "class1")
    splits = check_recipe(Recipe.load(recipe)).splits
    (batch,) = splits.test.batches
    assert sorted(batch["labels"].tolist()) == [0, 0, 2, 2] and splits.task.names == ["class0", "class1", "class2"]
    shutil.copytree(tmp_path / "test" / "class2", tmp_path / "test" / "class9")
    with pytest.raises(InputError, match=r"among the training labels.*class9"):
        check_recipe(Recipe.load(recipe))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA"])
def test_images_of_every_mode_become_eight_bit_colours(mode: str) -> None:
    image = Image.fromarray(np.full((4, 4, 3), 255, np.uint8)).convert(mode)
    assert np.asarray(convert_image(image, "RGB", "toy")).max() >= 250
    assert convert_image(image, "L", "toy").mode == "L"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 32768, 65535]], np.uint16), [0, 128, 255]),
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
    ],
)
def test_deep_images_are_scaled_not_clipped(values: Any, expected: list[int]) -> None:
    assert np.asarray(convert_image(Image.fromarray(values), "L", "toy"))[0].tolist() == expected


@pytest.mark.parametrize("values", [np.array([[-1.0, 2.0]], np.float32), np.array([[0, 70000]], np.int32)])
def test_images_of_an_unknown_range_are_refused(values: Any) -> None:
    with pytest.raises(InputError, match="8 or 16 bits"):
        convert_image(Image.fromarray(values), "RGB", "toy")


# -- the command --------------------------------------------------------------------------------------------------


def run_nas(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["nas", *map(str, words)])
    main()


def test_check_prints_one_page_and_writes_nothing(
    text_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_nas(monkeypatch, "check", text_recipe, "--run", tmp_path / "run")
    page = capsys.readouterr().out
    names = [line.split()[0] for line in page.splitlines()]
    for name in ("model", "tokenizer", "data", "classes", "example", "lengths", "duplicates", "metrics", "memory"):
        assert name in names, page
    assert {"disk", "space", "workload", "storage", "cluster", "time", "next"} <= {*names} and len(names) < 30
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["check", "search"])
def test_a_metric_that_raises_is_refused_before_training(
    command: str,
    text_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (text_recipe.parent / "own.py").write_text("def broken(labels, predictions):\n    raise KeyError('x')\n")
    overrides = [
        f"task.metrics.mine={text_recipe.parent}/own.py:broken",
        "objectives={mine: maximize, macs: minimize}",
    ]
    with pytest.raises(SystemExit):
        run_nas(monkeypatch, command, text_recipe, *overrides, "--run", tmp_path / "run")
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "own.py:broken` fails: KeyError" in error
    assert not (tmp_path / "run").exists()


def test_a_model_whose_loss_is_not_finite_is_refused(text_recipe: Path) -> None:
    from toys import bert

    model = bert(num_labels=2)
    model.classifier.weight.data.fill_(3e38)
    model.save_pretrained(text_recipe.parent / "model")
    with pytest.raises(InputError, match=r"loss of the model as it is must be finite, but is (nan|inf)"):
        check_parent(check_recipe(Recipe.load(text_recipe)), text_recipe.parent / "run")


def test_a_model_that_fails_on_the_data_is_refused(text_recipe: Path) -> None:
    file = text_recipe.parent / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chunk_size_feed_forward": "x"}))
    with pytest.raises(InputError, match=r"must run on the data, but fails with TypeError"):
        check_parent(check_recipe(Recipe.load(text_recipe)), text_recipe.parent / "run")


@pytest.mark.parametrize("returned", ["None", "'good'", "[0.5]", "float('nan')", "labels / 0"])
def test_a_metric_that_returns_no_number_is_refused(returned: str, text_recipe: Path) -> None:
    (text_recipe.parent / "own.py").write_text(f"def mine(labels, predictions):\n    return {returned}\n")
    overrides = [f"task.metrics.mine={text_recipe.parent}/own.py:mine", "objectives={mine: maximize, macs: minimize}"]
    with pytest.raises(InputError, match="mine"):
        check_parent(check_recipe(Recipe.load(text_recipe, overrides)), text_recipe.parent / "run")


def test_a_metric_that_needs_more_examples_gets_the_search_slice(text_recipe: Path) -> None:
    recipe = yaml.safe_load(text_recipe.read_text())
    (text_recipe.parent / "own.py").write_text(
        "def large(labels, predictions):\n    assert len(labels) > 65\n    return 0.5\n"
    )
    recipe["task"] |= {"metrics": {"mine": "own.py:large"}, "search_examples": 70}
    recipe["objectives"] = {"mine": "maximize", "macs": "minimize"}
    text_recipe.write_text(yaml.safe_dump(recipe))
    lines = check_parent(check_recipe(Recipe.load(text_recipe)), text_recipe.parent / "run")
    assert any("mine 0.5 of the model as it is on 70 examples" in line for line in lines)

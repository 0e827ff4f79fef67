"""Labels of every type: classes, lists of classes, numbers and tags."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from toy_tasks import Make, Rows, causal, jsonl
from toys import bert

from nas.recipe.schema import Recipe
from nas.tasks.batches import IGNORE_INDEX, model_inputs
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from predictors import Workload
from search_spaces import InputError


@pytest.mark.parametrize(
    ("case", "problem_type", "names"),
    [
        ("single label", "single_label_classification", ["False", "True"]),
        ("regression", "regression", ["LABEL_0"]),
        ("multi-label", "multi_label_classification", ["good", "very"]),
        ("multi-hot", "multi_label_classification", ["0", "1"]),
    ],
)
def test_the_problem_type_follows_from_the_labels(case: str, problem_type: str, names: list[str], make: Make) -> None:
    context = make(case)
    config = context.load_model().config
    assert (config.problem_type, list(config.id2label.values())) == (problem_type, names)
    assert context.load_model()(**context.dummy_inputs(Workload(sequence_length=8))).logits.shape == (1, len(names))


def test_lists_of_classes_become_multi_hot(make: Make) -> None:
    for case, row in (("multi-label", [1.0, 0.0]), ("multi-hot", [1.0, 0.0])):
        splits = make(case).splits
        good, very = (splits.task.processor.convert_tokens_to_ids(w) for w in ("good", "very"))
        rows = [r for r in splits.train if good in r["input_ids"] and very not in r["input_ids"]]
        assert rows and all(r["labels"] == row for r in rows)


def test_integers_are_classes_unless_the_recipe_or_the_head_is_for_regression(make: Make, text_folder: Path) -> None:
    rows: Rows = lambda s: {"text": s, "label": 1 + s.count("very")}  # noqa: E731
    assert make("single label", rows).splits.task.problem_type == "single_label_classification"
    assert make("regression", rows, problem_type="regression").splits.task.problem_type == "regression"
    bert(num_labels=1).save_pretrained(text_folder / "model")
    context = make("regression", rows)
    assert context.splits.task.problem_type == "regression" and context.has_head


def test_the_first_token_of_a_word_has_its_tag(make: Make) -> None:
    context = make("tags", lambda s: {"tokens": ["the film", "good"], "ner_tags": ["B", "O"]})
    row = context.splits.train[0]
    assert context.processor.convert_ids_to_tokens(row["input_ids"]) == ["[CLS]", "the", "film", "good", "[SEP]"]
    assert row["labels"] == [IGNORE_INDEX, 0, IGNORE_INDEX, 1, IGNORE_INDEX]
    batch = context.splits.task.collate([row, {name: values[:2] for name, values in row.items()}])
    assert batch["labels"].tolist()[1] == [IGNORE_INDEX, 0, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX]


def test_a_folder_of_images_may_have_several_labels_per_image(tmp_path: Path) -> None:
    from PIL import Image
    from toys import TOYS
    from transformers import ViTImageProcessor

    toy = TOYS["vit"].model()
    toy.config.save_pretrained(tmp_path / "model")
    size = toy.config.image_size
    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    labels = [["red"], ["red", "dark"], [], ["dark"]] * 3
    for k in range(12):
        Image.new("RGB", (10, 6), (20 * k, k, k)).save(tmp_path / "images" / f"{k}.png")
    jsonl(tmp_path / "images" / "metadata", [{"file_name": f"{k}.png", "label": labels[k]} for k in range(12)])
    source = str(tmp_path / "images")
    task = {"type": "image-classification", "train": source, "test": source, "search_examples": 4}
    context = TaskContext(Recipe.parse({"model": str(tmp_path / "model"), "task": task, "space": {}}))
    (batch,) = context.splits.test.batches
    assert context.splits.task.names == ["dark", "red"]
    assert sorted(batch["labels"].tolist()) == sorted([float("dark" in row), float("red" in row)] for row in labels)
    scores = score(context.load_model().eval(), context.splits.test, ["f1", "accuracy", "loss"])
    assert scores["loss"].value == pytest.approx(context.load_model().eval()(**batch).loss.item(), rel=1e-5)


def test_a_decoder_classifies_texts_of_different_lengths(make: Make, text_folder: Path) -> None:
    shutil.rmtree(text_folder / "model")
    causal(text_folder / "model")
    context = make("single label")
    model = context.load_model().eval()
    batch = context.splits.test.batches[0]
    texts = [ids[mask > 0] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert len(set(map(len, texts))) > 1 and model.config.pad_token_id is not None
    single_logits = [model(input_ids=text[None]).logits[0] for text in texts]
    torch.testing.assert_close(model(**model_inputs(batch)).logits, torch.stack(single_logits), atol=1e-5, rtol=1e-4)


# -- names of columns and of classes ------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["labels", "input_ids", "token_type_ids", "given label"])
def test_labels_become_floats_whatever_their_column_is_called(column: str, make: Make) -> None:
    rows: Rows = lambda s: {"text": s, column: [int("very" in s), 2 + ("good" in s)]}  # noqa: E731
    splits = make("multi-label", rows, label=column).splits
    batch = splits.task.collate([splits.train[0], splits.train[1]])
    assert batch["labels"].dtype == torch.float32 and batch["labels"].shape == (2, 4)
    assert batch["input_ids"].dtype == torch.int64


def test_a_column_labels_beside_the_label_plays_no_part(make: Make) -> None:
    rows: Rows = lambda s: {"text": s, "label": int("very" in s), "labels": "neg", "input_ids": "x"}  # noqa: E731
    splits = make("single label", rows, text="text").splits
    assert splits.task.names == ["0", "1"]
    assert splits.task.collate([splits.train[0]])["labels"].dtype == torch.int64


def test_a_column_labels_is_the_label_where_there_is_no_other(make: Make) -> None:
    assert make("single label", lambda s: {"text": s, "labels": int("very" in s)}).splits.task.names == ["0", "1"]


def one_hot(sentence: str) -> dict[str, object]:
    return {"text": sentence, "very": "very" in sentence, "good": int("good" in sentence), "rare": 0}


def test_a_column_for_each_class(make: Make) -> None:
    splits = make("multi-label", one_hot, label=["very", "good", "rare"]).splits
    assert splits.task.names == ["very", "good", "rare"]
    good, very = (splits.task.processor.convert_tokens_to_ids(w) for w in ("good", "very"))
    for row in splits.train:
        assert row["labels"] == [float(very in row["input_ids"]), float(good in row["input_ids"]), 0.0]


def test_exactly_one_of_several_columns_may_be_the_class(make: Make) -> None:
    rows: Rows = lambda s: {"text": s, "very": int("very" in s), "plain": int("very" not in s)}  # noqa: E731
    single = {"problem_type": "single_label_classification"}
    splits = make("multi-label", rows, label=["plain", "very"], **single).splits
    very = splits.task.processor.convert_tokens_to_ids("very")
    assert all(row["labels"] == int(very in row["input_ids"]) for row in splits.train)
    with pytest.raises(InputError, match="row 0 has 0 of"):
        _ = make("multi-label", lambda s: {**rows(s), "plain": 0}, label=["plain", "very"], **single).splits


@pytest.mark.parametrize(
    ("rows", "task", "says"),
    [
        (lambda s: {"text": s, "a": 0, "b": 2}, {"label": ["a", "b"]}, r"`b`.*holds 2"),
        (lambda s: {"text": s, "a": 0, "b": "1"}, {"label": ["a", "b"]}, r"`b`.*holds '1'"),
        (lambda s: {"text": s, "a": 0}, {"label": ["a", "b"]}, r"no column `b`.*task\.label"),
        (lambda s: {"text": s, "label": "[0 1]" if "very" in s else "[1 0]"}, {}, r"lists written as text.*JSON"),
    ],
)
def test_labels_that_are_none_are_refused(rows: Rows, task: dict[str, object], says: str, make: Make) -> None:
    with pytest.raises(InputError, match=says):
        _ = make("multi-label", rows, **task).splits


def test_other_tasks_have_one_label_column(make: Make) -> None:
    with pytest.raises(InputError, match="one column for token-classification"):
        _ = make("tags", label=["ner_tags", "other"]).splits


def test_infinite_numbers_are_refused(make: Make) -> None:
    rows: Rows = lambda s: {"text": s, "label": float("inf") if "very" in s else 0.5}  # noqa: E731
    with pytest.raises(InputError, match=r"must be finite.*inf"):
        _ = make("regression", rows).splits


def test_numbers_that_are_all_equal_are_refused(make: Make) -> None:
    with pytest.raises(InputError, match=r"must differ.*0\.5"):
        _ = make("regression", lambda s: {"text": s, "label": 0.5}).splits


def test_class_names_of_the_test_data_decide_not_their_order() -> None:
    from datasets import ClassLabel, Dataset, Features

    from nas.tasks.labels import with_class_ids

    def data(names: list[str], ids: list[int]) -> Dataset:
        return Dataset.from_dict({"label": ids}, features=Features({"label": ClassLabel(names=names)}))

    read, names = with_class_ids(data(["b", "a", "unused"], [0, 1, 0]), "label", ["a", "b", "c"], "toy")
    assert (read["label"][:], names) == ([1, 0, 1], ["a", "b", "c"])
    with pytest.raises(InputError, match=r"\['a', 'b'\], but got \['c'\]"):
        with_class_ids(data(["a", "c"], [0, 1]), "label", ["a", "b"], "toy")

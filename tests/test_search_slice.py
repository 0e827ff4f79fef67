"""The search slice: fair to the classes, whole in its groups, or from a set of its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from nas.recipe.schema import Recipe
from nas.tasks.context import TaskContext
from nas.tasks.search_slice import split_training_data, with_group_ids
from search_spaces import InputError


def data(labels: list[int], **columns: list[Any]) -> Any:
    """A task with training data of these labels; `row` numbers the rows."""
    features = Features({"row": Value("int64"), "label": ClassLabel(num_classes=3)})
    train = Dataset.from_dict({"row": list(range(len(labels))), "label": labels}, features=features)
    for name, values in columns.items():
        train = train.add_column(name, values)
    return SimpleNamespace(train=train, label="label")


def settings(size: int, group: str | None = None) -> Any:
    return SimpleNamespace(search_examples=size, group=group)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("size", "counts"), [(10, {0: 7, 1: 2, 2: 1}), (50, {0: 35, 1: 10, 2: 5}), (3, {0: 2, 1: 1})])
def test_each_class_has_its_share(size: int, counts: dict[int, int], seed: int) -> None:
    task = data([0] * 70 + [1] * 20 + [2] * 10)
    train, search, more = split_training_data(task, settings(size), seed)
    assert Counter(search["label"][:]) == counts
    assert sorted([*train["row"], *search["row"], *more["row"]]) == list(range(100)), "each row is in one of them"
    assert search["row"][:] == split_training_data(task, settings(size), seed)[1]["row"][:]
    assert size < 10 or search["row"][:] != sorted(search["row"][:]), "growing slices must be random samples"


@pytest.mark.parametrize("size", [1, 7, 25, 60])
def test_groups_are_not_split(size: int) -> None:
    groups = [row // 4 % 19 for row in range(100)]
    train, search, _ = split_training_data(data([0, 1] * 50, patient=groups), settings(size, "patient"), 0)
    assert len(search) == size and not set(train["patient"]) & set(search["patient"])
    whole = Counter(groups)
    assert all(count == whole[group] for group, count in Counter(train["patient"]).items())


def test_groups_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(InputError, match="must leave some groups of `patient` to train on"):
        split_training_data(data([0, 1, 0, 1], patient=[1, 1, 1, 1]), settings(2, "patient"), 0)


def test_equal_groups_have_equal_numbers_in_every_split() -> None:
    train, test = (Dataset.from_dict({"id": ids}) for ids in (["a", "b", "a"], ["b", "c"]))
    first, second = (with_group_ids(each, "id")["id"][:] for each in (train, test))
    assert first[0] == first[2] != first[1] == second[0] != second[1]
    assert with_group_ids(test, None) is test


def test_a_validation_set_of_its_own_leaves_all_training_data(text_recipe: Path) -> None:
    folder = text_recipe.parent
    rows = pd.read_csv(folder / "test.csv")
    rows.to_csv(folder / "dev.csv", index=False)
    own = TaskContext(Recipe.load(text_recipe, [f"task.validation={folder / 'dev.csv'}", "task.search_examples=12"]))
    taken = TaskContext(Recipe.load(text_recipe, ["task.search_examples=12"]))
    assert len(own.splits.search) == 12 and len(own.splits.train) == len(taken.splits.train) + 12
    labels = Counter(label for batch in own.splits.search.batches for label in batch["labels"].tolist())
    assert labels == {0: 6, 1: 6}


def test_groups_of_texts_are_no_input_and_stay_out_of_other_splits(text_recipe: Path) -> None:
    folder = text_recipe.parent
    train, test = pd.read_parquet(folder / "train.parquet"), pd.read_csv(folder / "test.csv")
    train.assign(film=[f"film {row // 6}" for row in range(len(train))]).to_parquet(folder / "train.parquet")
    context = TaskContext(Recipe.load(text_recipe, ["task.group=film", "task.search_examples=12"]))
    assert len(context.splits.search) == 12 and len(context.splits.train) == len(train) - 12
    test.assign(film="film 3").to_csv(folder / "test.csv", index=False)
    with pytest.raises(InputError, match=r"1 values of `film` are in both `task.train` and `task.test`"):
        TaskContext(Recipe.load(text_recipe, ["task.group=film", "task.search_examples=12"])).splits  # noqa: B018
    test.assign(film="film new").to_csv(folder / "test.csv", index=False)
    test.assign(film="film new").to_csv(folder / "dev.csv", index=False)
    with pytest.raises(InputError, match=r"1 values of `film` are in both `task.test` and `task.validation`"):
        TaskContext(Recipe.load(text_recipe, ["task.group=film", f"task.validation={folder / 'dev.csv'}"])).splits  # noqa: B018
    with pytest.raises(InputError, match=r"name one of them in `task\.group`"):
        TaskContext(Recipe.load(text_recipe, ["task.group=nothing", "task.search_examples=12"])).splits  # noqa: B018

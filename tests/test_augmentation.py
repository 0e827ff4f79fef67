"""Augmentation: each training gets the examples that the recipe's function returns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_data import image_context
from test_finetune import SMALL, export

from nas.commands import finetune as finetune_module
from nas.commands.finetune import finetune
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.stages import parent as parent_stage
from nas.stages import supernet as supernet_stage
from nas.stages.check import check_recipe
from nas.stages.parent import run_parent
from nas.stages.supernet import run_supernet
from nas.tasks.context import TaskContext
from search_spaces import InputError

PAGE = (Path(__file__).parent.parent / "docs" / "guides" / "training.md").read_text()
CODE = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "def drop_words" in code)


class ExamplesCounted(Exception):
    """Stands for a training; holds how many examples it was given."""


def raise_number_of_examples(*args: Any, **kwargs: Any) -> Any:
    raise ExamplesCounted(next(len(value) for value in (*args, *kwargs.values()) if hasattr(value, "column_names")))


@pytest.fixture
def recipe(text_recipe: Path) -> Recipe:
    """The toy recipe with the function of the page on training for both sections."""
    file = text_recipe.parent / "augment.py"
    file.write_text(CODE)
    return Recipe.load(text_recipe, [f"{name}.augment={file}:drop_words" for name in ("parent", "supernet")])


def test_words_are_dropped_from_copies_and_the_seed_decides_which(recipe: Recipe) -> None:
    context = TaskContext(recipe)
    plain, more = context.splits.train, context.training_set(recipe.parent)
    count = len(plain)
    assert len(more) == 2 * count and more[:count]["input_ids"] == plain[:]["input_ids"]
    pairs = list(zip(more[count:]["input_ids"], plain[:]["input_ids"], strict=True))
    assert all(set(fewer) <= set(words) for fewer, words in pairs)
    assert sum(len(fewer) < len(words) for fewer, words in pairs) > 0 and more[count:]["labels"] == plain[:]["labels"]
    second_context = TaskContext(recipe)
    assert second_context.training_set(recipe.supernet)[:] == more[:]
    assert len(second_context.splits.search) == recipe.task.search_examples  # never of it


def test_images_are_cropped(tmp_path: Path) -> None:
    (tmp_path / "augment.py").write_text(
        "def crop(data):\n    return data.map(lambda row: {'image': row['image'].crop((5, 0, 15, 6))})\n"
    )
    context = image_context(tmp_path, channels=3)
    settings = context.recipe.parent.model_copy(update={"augment": f"{tmp_path}/augment.py:crop"})
    cropped, originals = context.training_set(settings), context.splits.train
    assert len(cropped) == len(originals)
    for crop, original in zip(cropped, originals, strict=True):
        assert crop["labels"] == original["labels"]
        assert torch.allclose(crop["pixel_values"][..., :3], original["pixel_values"][..., :3])
        assert (crop["pixel_values"][..., 5:] == -1).all()  # outside the image is black


def test_each_training_gets_the_augmented_examples(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, context = Run.open(tmp_path / "run", recipe), TaskContext(recipe)
    doubled = 2 * len(context.splits.train)
    with monkeypatch.context() as patch, pytest.raises(ExamplesCounted, match=str(doubled)):
        patch.setattr(parent_stage, "model_trainer", raise_number_of_examples)
        run_parent(run, context)
    context.load_model().save_pretrained(run.parent)
    context.processor.save_pretrained(run.parent)
    with monkeypatch.context() as patch, pytest.raises(ExamplesCounted, match=str(doubled)):
        patch.setattr(supernet_stage, "SupernetTrainer", raise_number_of_examples)
        run_supernet(run, context)
    with monkeypatch.context() as patch, pytest.raises(ExamplesCounted, match=str(doubled)):
        patch.setattr(finetune_module, "model_trainer", raise_number_of_examples)
        finetune(export(run, SMALL, tmp_path / "small"), recipe, run.folder, tmp_path / "out")


WRONG = {
    "no function": ("", "must define a function `change`"),
    "one that fails": ("def change(data): return data[3 ** 9]", "augmentation .* fails: IndexError"),
    "no dataset": ("def change(data): return list(data)", "must return a datasets.Dataset, but got list"),
    "no examples": ("def change(data): return data.select([])", "all their columns, but there are none"),
    "other columns": ("def change(data): return data.remove_columns('sentence')", "lack `sentence`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_augmentation_is_refused_before_anything_is_written(name: str, text_recipe: Path) -> None:
    code, message = WRONG[name]
    (text_recipe.parent / "own.py").write_text(code)
    recipe = Recipe.load(text_recipe, [f"supernet.augment={text_recipe.parent}/own.py:change"])
    with pytest.raises(InputError, match=message):
        check_recipe(recipe)


def test_paths_of_augmentations_are_relative_to_the_recipe(text_recipe: Path) -> None:
    (text_recipe.parent / "own.py").touch()
    text_recipe.write_text(text_recipe.read_text() + "\n")
    data = text_recipe.read_text().replace("supernet:", "supernet:\n  augment: own.py:change")
    text_recipe.write_text(data)
    assert Recipe.load(text_recipe).supernet.augment == f"{text_recipe.parent.resolve()}/own.py:change"

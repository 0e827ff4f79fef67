"""The search slice: drawn from the training data by class or by group, or from a validation set of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.tasks.data import require_column
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from nas.recipe.schema import TaskSettings
    from nas.tasks.types import TaskType


def split_training_data(task: TaskType, settings: TaskSettings, seed: int) -> tuple[Dataset, Dataset]:
    """Sets the search slice of the training data apart.

    Its classes have the shares that they have in the training data. With ``task.group`` it holds whole groups instead.

    Args:
        task: The task with its training data.
        settings: The section ``task`` of the recipe.
        seed: The same seed gives the same examples.

    Returns:
        The training examples and the search slice, both in random order.

    Raises:
        InputError: If too few examples are left to train on.
    """
    size, shuffled = settings.search_examples, task.train.shuffle(seed=seed)
    if len(shuffled) <= size:
        raise InputError(
            f"`task.search_examples` must be below the {len(shuffled)} training examples, but got {size}."
        )
    if settings.group is not None:
        taken, left = _by_group(shuffled[settings.group][:], size)
    elif _has_classes(shuffled, task.label):
        taken, left = _by_class(np.asarray(shuffled[task.label][:]), size)
    else:
        taken, left = np.arange(size), np.arange(size, len(shuffled))
    if not len(left):
        raise InputError(
            f"`task.search_examples` must leave some groups of `{settings.group}` to train on, but {size} examples "
            "are in all of them; lower it."
        )
    return shuffled.select(left), shuffled.select(taken)


def draw(task: TaskType, examples: Dataset, size: int, seed: int) -> Dataset:
    """Draws the search slice from a validation set: all of it, or so many examples with its shares of classes."""
    shuffled = examples.shuffle(seed=seed)
    if len(shuffled) <= size:
        return shuffled
    is_labelled = _has_classes(shuffled, task.label)
    return shuffled.select(_by_class(np.asarray(shuffled[task.label][:]), size)[0] if is_labelled else range(size))


def require_groups_apart(settings: TaskSettings, splits: Sequence[tuple[Dataset, str]]) -> None:
    """Checks that no group is in two splits.

    Args:
        settings: The section ``task`` of the recipe.
        splits: The examples of each split and its key in the recipe; the training data first. Others that lack the
            column are not checked.

    Raises:
        InputError: If a group is in two of them, or the training data lacks the column.
    """
    column = settings.group
    if column is None:
        return
    train = splits[0][0]
    require_column(train, column, settings.train, "task.group")
    groups = set(train[column][:])
    for examples, key in splits[1:]:
        if column in examples.column_names and (shared := groups & set(examples[column][:])):
            raise InputError(
                f"no group of `task.group` may be in two splits, but {len(shared)} values of `{column}` are in both "
                f"`task.train` and `{key}`; take their rows out of one."
            )


def with_group_ids(examples: Dataset, column: str | None) -> Dataset:
    """The examples with groups as numbers, the same for equal values in every split: texts would be inputs."""
    if column not in examples.column_names:
        return examples
    ids = [int.from_bytes(blake2b(str(value).encode(), digest_size=7).digest()) for value in examples[column][:]]
    number = f"{column} as number"
    return examples.add_column(number, ids).remove_columns(column).rename_column(number, column)


def _has_classes(examples: Dataset, label: str | None) -> bool:
    """Whether every example has the id of one class."""
    return label in examples.column_names and hasattr(examples.features[label], "names")


def _by_class(labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The first examples of each class, as many as its share; and the others. Rounded by largest remainders."""
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    exact = size * counts / len(labels)
    quota = np.floor(exact).astype(int)
    for k in np.argsort(quota - exact, kind="stable")[: size - quota.sum()]:
        quota[k] += 1
    rank = np.empty(len(labels), dtype=int)
    for k in range(len(classes)):
        rank[inverse == k] = np.arange(counts[k])
    is_taken = rank < quota[inverse]
    return np.flatnonzero(is_taken), np.flatnonzero(~is_taken)


def _by_group(groups: Sequence[Any], size: int) -> tuple[np.ndarray, np.ndarray]:
    """The first examples of whole groups; and all examples of the other groups."""
    counts, taken, n_taken = Counter(groups), set[Any](), 0
    for group in dict.fromkeys(groups):
        if n_taken < size:
            taken.add(group)
            n_taken += counts[group]
    is_taken = np.array([group in taken for group in groups])
    return np.flatnonzero(is_taken)[:size], np.flatnonzero(~is_taken)

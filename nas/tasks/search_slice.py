"""The search slice: drawn from the training data by class or by group, or from a validation set of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.tasks.data import require_column
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from nas.recipe.schema import TaskSettings
    from nas.tasks.types import TaskType


MORE = 10
"""As many examples as the search slice has are kept for near ties, if so many times as many stay to train on."""


def split_training_data(task: TaskType, settings: TaskSettings, seed: int) -> tuple[Dataset, Dataset, Dataset]:
    """Sets the search slice of the training data apart, and as many examples for near ties where there are plenty.

    Its classes have the shares that they have in the training data. With ``task.group`` it holds whole groups instead.

    Args:
        task: The task with its training data.
        settings: The section ``task`` of the recipe.
        seed: The same seed gives the same examples.

    Returns:
        The training examples, the search slice and those for near ties, which may be none; all in random order.

    Raises:
        InputError: If too few examples are left to train on.
    """
    size, shuffled = settings.search_examples, task.train.shuffle(seed=seed)
    if len(shuffled) <= size:
        raise InputError(
            f"`task.search_examples` must be below the {len(shuffled)} training examples, but got {size}."
        )
    taken, left = _parted(task, settings, shuffled, size)
    if not len(left):
        raise InputError(
            f"`task.search_examples` must leave some groups of `{settings.group}` to train on, but {size} examples "
            "are in all of them; lower it."
        )
    rest, search = shuffled.select(left), shuffled.select(taken)
    more, train = _parted(task, settings, rest, size if len(rest) >= (MORE + 1) * size else 0)
    return rest.select(train), search, rest.select(more)


def _parted(
    task: TaskType, settings: TaskSettings, examples: Dataset, size: int
) -> tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]:
    """The numbers of so many examples, by group or by class where there are some, and those of the others."""
    if size == 0:
        return [], range(len(examples))
    if settings.group is not None:
        return _by_group(examples[settings.group][:], size)
    if _has_classes(examples, task.label):
        return _by_class(np.asarray(examples[task.label][:]), size)
    return np.arange(size), np.arange(size, len(examples))


def draw(task: TaskType, examples: Dataset, size: int, seed: int) -> tuple[Dataset, Dataset]:
    """Draws the search slice from a validation set: all of it, or so many examples with its shares of classes.

    Returns:
        The slice, and of the others as many for near ties as there are, at most that many again.
    """
    shuffled = examples.shuffle(seed=seed)
    if len(shuffled) <= size:
        return shuffled, shuffled.select([])
    is_labelled = _has_classes(shuffled, task.label)
    everything = np.arange(len(shuffled))
    taken, left = (
        _by_class(np.asarray(shuffled[task.label][:]), size) if is_labelled else (everything[:size], everything[size:])
    )
    return shuffled.select(taken), shuffled.select(left[:size])


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
    groups = [(set(rows[column][:]), key) for rows, key in splits if column in rows.column_names]
    for (values, key), (others, other) in combinations(groups, 2):
        if shared := values & others:
            raise InputError(
                f"no group of `task.group` may be in two splits, but {len(shared)} values of `{column}` are in both "
                f"`{key}` and `{other}`; take their rows out of one."
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

"""Maps examples to rows of model inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

GIVEN = "given "
"""Put before the names of the columns of examples while they are mapped."""
Columns = Mapping[str, list[Any]]


class _GivenColumns(dict[str, list[Any]]):
    """Columns of examples under their own names, read when asked for."""

    def __init__(self, batch: Mapping[str, list[Any]]) -> None:
        self._batch = batch

    def __missing__(self, name: str) -> list[Any]:
        return self._batch[GIVEN + name]


def map_examples(examples: Dataset, function: Callable[..., dict[str, Any]], **options: Any) -> Dataset:
    """Maps batches of examples to rows of model inputs, which have none of the columns of the examples.

    `datasets` casts a column of the result to the type that a column of that name had, so labels would stay integers
    where the examples had a column ``labels``. Hence the columns of the examples get other names first.

    Args:
        examples: The examples.
        function: From columns of a batch (and indices, with ``with_indices``) to columns of rows.
        **options: Those of `datasets.Dataset.map`.
    """
    names = {name: GIVEN + name for name in examples.column_names}

    def call(batch: Mapping[str, list[Any]], *indices: list[int]) -> dict[str, Any]:
        return function(_GivenColumns(batch), *indices)

    renamed = examples.rename_columns(names)
    return renamed.map(call, batched=True, remove_columns=renamed.column_names, **options)

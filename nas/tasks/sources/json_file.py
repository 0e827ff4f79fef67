"""Reads JSON: lines of objects, a list of objects, a table by columns, or SQuAD's articles."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.tasks.sources.opened import open_text
from search_spaces import InputError
from search_spaces.errors import short_error

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Features

ROWS = 1000
"""Rows whose types are found at once."""
JsonRow = dict[str, Any]


def json_rows(path: Path, kind: str) -> Iterator[JsonRow]:
    """Yields the rows of a file.

    Args:
        path: The file.
        kind: Its suffix: ``.json``, or ``.jsonl`` and ``.ndjson`` for lines only.

    Raises:
        InputError: If a line or the file is not JSON, or holds no rows.
    """
    if kind != ".json" or _has_lines(path):
        return _line_rows(path)
    with open_text(path) as file:
        try:
            return iter(_rows_of(json.load(file), path))
        except json.JSONDecodeError as error:
            raise InputError(
                f"`{path}` must be JSON, but is not: {error.msg} in line {error.lineno}, column {error.colno}."
            ) from None


def json_features(path: Path, kind: str) -> Features:
    """The types of all columns of a file, from all its rows.

    Raises:
        InputError: If the values of a column have different types.
    """
    import pyarrow as pa
    from datasets import Features

    schema = pa.schema([])
    for number, batch in enumerate(_batched(json_rows(path, kind))):
        found = pa.schema({name: _type(batch, name, ROWS * number, path) for name in dict.fromkeys(chain(*batch))})
        try:
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(f"a column of `{path}` must have one type: {short_error(error)}.") from None
    return Features.from_arrow_schema(schema)


def _batched(rows: Iterator[JsonRow]) -> Iterator[tuple[JsonRow, ...]]:
    while batch := tuple(islice(rows, ROWS)):
        yield batch


def _type(batch: tuple[JsonRow, ...], name: str, first: int, path: Path) -> pa.DataType:
    """The type of a column in some rows."""
    import pyarrow as pa

    values = [row.get(name) for row in batch]
    try:
        return pa.array(values).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        types = [type(value).__name__ for value in values]
        kinds = [kind for kind in dict.fromkeys(types) if kind != "NoneType"]
        where = [f"{kind} in row {first + types.index(kind)}" for kind in kinds]
        raise InputError(
            f"`{name}` of `{path}` must have one type, but has {' and '.join(where)} ({short_error(error)}); make "
            "them alike."
        ) from None


def _has_lines(path: Path) -> bool:
    """Whether the first line is an object of its own and others follow."""
    with open_text(path) as file:
        first = file.readline()
        try:
            is_row = isinstance(json.loads(first), dict)
        except ValueError:
            return False
        return is_row and any(line.strip() for line in file)


def _line_rows(path: Path) -> Iterator[JsonRow]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"every line of `{path}` must be a JSON object, but line {number} is not: {error.msg} at column "
                    f"{error.colno}."
                ) from None
            if not isinstance(row, dict):
                raise InputError(
                    f"every line of `{path}` must be a JSON object, but line {number} is {type(row).__name__}."
                )
            yield row


def _rows_of(data: Any, path: Path) -> list[JsonRow]:
    """The rows in the content of a file."""
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list)]
        if len(lists) == 1 and _is_rows(lists[0]):
            data = lists[0]
        elif (table := _table_rows(data)) is not None:
            data = table
    if not _is_rows(data):
        raise InputError(
            f"`{path}` must hold a list of objects, or an object on every line, but holds {type(data).__name__}; "
            "write "
            "it as JSON lines."
        )
    return list(chain.from_iterable(map(_squad_rows, data))) if all("paragraphs" in row for row in data) else data


def _is_rows(data: Any) -> bool:
    return isinstance(data, list) and bool(data) and all(isinstance(row, dict) for row in data)


def _table_rows(data: Mapping[str, Any]) -> list[JsonRow] | None:
    """The rows of a table by columns, each a list or a mapping from the numbers of rows, as pandas writes it."""
    columns = list(data.values())
    if not columns or not all(type(column) is type(columns[0]) is not str for column in columns):
        return None
    if isinstance(columns[0], dict) and all(column.keys() == columns[0].keys() for column in columns):
        return [{name: column[row] for name, column in data.items()} for row in columns[0]]
    if isinstance(columns[0], list) and len({len(column) for column in columns}) == 1:
        return [dict(zip(data, row, strict=True)) for row in zip(*columns, strict=True)]
    return None


def _squad_rows(article: Mapping[str, Any]) -> Iterator[JsonRow]:
    """The questions of an article of SQuAD (https://rajpurkar.github.io/SQuAD-explorer) as rows."""
    for paragraph in article["paragraphs"]:
        for asked in paragraph["qas"]:
            answers = asked.get("answers", [])
            yield {
                "id": str(asked.get("id", "")),
                "title": str(article.get("title", "")),
                "context": paragraph["context"],
                "question": asked["question"],
                "answers": {
                    "text": [answer["text"] for answer in answers],
                    "answer_start": [answer["answer_start"] for answer in answers],
                },
            }

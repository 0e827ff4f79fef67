"""Reads CSV and TSV files: every line that is no part of a quoted text is one row, or the file is refused."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.tasks.sources.cells import Column, columns_of
from nas.tasks.sources.opened import open_text
from search_spaces import InputError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
OTHER_DELIMITERS = (";", "\t", "|")
"""Delimiters that a CSV file may have instead, if its header has no comma."""


@dataclass(frozen=True)
class Dialect:
    """How the lines of a file become rows.

    Attributes:
        delimiter: Between two cells.
        quotes: Whether a cell in quotes may hold delimiters and line breaks; else each line is a row, and only quotes
            around a whole cell are removed.
    """

    delimiter: str
    quotes: bool


@dataclass(frozen=True)
class _Reading:
    """What a file is in one dialect.

    Attributes:
        problem: Why it cannot be read so; "" if it can.
        spanning: Lines of the first row that spans several, if there is one.
    """

    problem: str = ""
    spanning: tuple[int, int] | None = None


class DelimitedFile:
    """A CSV or TSV file with a header.

    Args:
        path: The file.
        kind: Its suffix, a key of `DELIMITERS`.

    Raises:
        InputError: If it has no header, a row has another number of cells, or quotes can be read in two ways.
    """

    def __init__(self, path: Path, kind: str) -> None:
        csv.field_size_limit(sys.maxsize)
        self.path = path
        self.dialect = _dialect(path, kind)
        self.columns: list[Column] = columns_of(*self._cells())

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the rows."""
        for row in self._cells()[1]:
            yield {column.name: column.value(cell) for column, cell in zip(self.columns, row, strict=True)}

    def _cells(self) -> tuple[list[str], Iterator[list[str]]]:
        """The names of the columns, and the cells of each row."""
        rows = (cells for _, _, cells in _read(self.path, self.dialect))
        return _column_names(self.path, next(rows)), rows


def _dialect(path: Path, kind: str) -> Dialect:
    """The dialect in which a file can be read; with quotes if both can be, unless they disagree on its rows.

    Raises:
        InputError: If none fits, or both do and the rows differ.
    """
    delimiter = _delimiter(path, kind)
    literal, quoted = Dialect(delimiter, quotes=False), Dialect(delimiter, quotes=True)
    reading = _reading(path, quoted)
    if not reading.problem and reading.spanning is None:
        return quoted
    is_by_line = not _reading(path, literal).problem
    if reading.problem and is_by_line:
        return literal
    _require(path, reading)
    if not is_by_line or _column_count(path, quoted) == 1:
        return quoted
    first, last = reading.spanning or (0, 0)
    raise InputError(
        f"`{path}` must say where a row ends, but the quotation mark in line {first} closes in line {last}, and every "
        'line between is a row of its own; double the quotation mark ("") or remove it.'
    )


def _require(path: Path, reading: _Reading) -> None:
    if reading.problem:
        raise InputError(
            f"`{path}` cannot be read: {reading.problem}; correct the line, or put texts in quotation marks."
        )


def _delimiter(path: Path, kind: str) -> str:
    """The delimiter of the header; another one where a CSV file has it and no comma."""
    usual = DELIMITERS[kind]
    with open_text(path) as file:
        header = file.readline()
    if not header.strip():
        raise InputError(f"`{path}` must begin with a line of column names, but its first line is empty.")
    found = [other for other in OTHER_DELIMITERS if other in header]
    return found[0] if usual not in header and len(found) == 1 else usual


def _reading(path: Path, dialect: Dialect) -> _Reading:
    """Reads all rows in a dialect; they must have as many cells as the header."""
    columns, spanning = 0, None
    try:
        for first, last, cells in _read(path, dialect):
            columns = columns or len(cells)
            if len(cells) != columns:
                return _Reading(f"line {first} has {len(cells)} cells, but the header {columns}", spanning)
            if last > first and spanning is None:
                spanning = first, last
    except _BadQuotes as error:
        return _Reading(str(error), spanning)
    return _Reading(spanning=spanning)


class _BadQuotes(Exception):
    """A quotation mark that does not enclose a cell."""


def _column_count(path: Path, dialect: Dialect) -> int:
    return len(next(_read(path, dialect))[2])


def _read(path: Path, dialect: Dialect) -> Iterator[tuple[int, int, list[str]]]:
    """Yields the first and the last line of each row, and its cells; empty lines are left out."""
    quoting = {"strict": True} if dialect.quotes else {"quoting": csv.QUOTE_NONE}
    with open_text(path) as file:
        reader = csv.reader(file, delimiter=dialect.delimiter, **quoting)
        while True:
            first = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise _BadQuotes(f"a quotation mark in line {first} encloses no cell ({error})") from None
            if cells:
                yield first, reader.line_num, cells if dialect.quotes else [*map(_without_quotes, cells)]


def _without_quotes(cell: str) -> str:
    """A cell without the quotes that enclose it; unchanged if they do not."""
    inner = cell[1:-1].replace('""', "")
    is_quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner
    return cell[1:-1].replace('""', '"') if is_quoted else cell


def _column_names(path: Path, header: list[str]) -> list[str]:
    """The names in a header; a column without one is numbered.

    Raises:
        InputError: If two columns have one name.
    """
    names = [name or f"Unnamed: {number}" for number, name in enumerate(header)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"the columns of `{path}` must have different names, but there are two `{twice}`; rename one."
        )
    return names

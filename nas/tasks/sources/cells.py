"""Types of the columns of a delimited file, from all its cells: numbers, booleans, lists, else text."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Features

MISSING_WORDS = frozenset(
    ("NA", "N/A", "n/a", "#NA", "#N/A", "<NA>", "NULL", "null", "Null", "None", "NaN", "nan", "-NaN", "-nan")
)
"""Words for a missing number; in a column with other words they are words."""
INTEGER = re.compile(r"[+-]?(0|[1-9]\d*)")
NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
BOOLEANS = {"True": True, "true": True, "TRUE": True, "False": False, "false": False, "FALSE": False}

Convert = Callable[[str], Any]
"""From a cell to its value; ValueError or KeyError if it has no such value."""


def _integer(cell: str) -> int:
    cell = cell.strip()
    if not INTEGER.fullmatch(cell) or abs(int(cell)) >= 2**63:
        raise ValueError(cell)
    return int(cell)


def _number(cell: str) -> float:
    cell = cell.strip()
    if not NUMBER.fullmatch(cell):
        raise ValueError(cell)
    return float(cell)


def parse_list(cell: str) -> list[Any]:
    """The list that a cell holds as JSON or as Python writes it; ValueError if it holds none."""
    cell = cell.strip()
    if not (cell.startswith("[") and cell.endswith("]")):
        raise ValueError(cell)
    try:
        value = json.loads(cell)
    except ValueError:
        try:
            value = ast.literal_eval(cell)
        except (SyntaxError, MemoryError, RecursionError):
            raise ValueError(cell) from None
    if not isinstance(value, list):
        raise ValueError(cell)
    return value


CONVERSIONS: dict[str, Convert] = {
    "bool": BOOLEANS.__getitem__,
    "int64": _integer,
    "float64": _number,
    "list": parse_list,
    "string": str,
}
"""Type -> how a cell becomes a value; the first that fits all cells of a column is its type."""
NUMERIC = ("bool", "int64", "float64")
ITEMS: dict[str, tuple[type, ...]] = {"string": (str,), "bool": (bool,), "int64": (int,), "float64": (int, float)}
"""Type of the items of lists -> their Python types; the first that fits all of them counts."""


class Column:
    """The type of a column, narrowed by each of its cells.

    Args:
        name: Its name in the header.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._types = list(CONVERSIONS)
        self._items = list(ITEMS)
        self._is_empty = True

    def add(self, cell: str) -> None:
        """Takes a cell into account."""
        if not cell or cell in MISSING_WORDS or len(self._types) == 1:
            return
        self._is_empty = False
        self._types = [name for name in self._types if self._fits(name, cell)]

    def _fits(self, name: str, cell: str) -> bool:
        try:
            value = CONVERSIONS[name](cell)
        except (ValueError, KeyError):
            return False
        if name == "list":
            self._items = [item for item in self._items if all(type(each) in ITEMS[item] for each in value)]
            return bool(self._items)
        return True

    @property
    def type(self) -> str:
        """A key of `CONVERSIONS`."""
        return "string" if self._is_empty else self._types[0]

    @property
    def feature(self) -> Any:
        """The type as a feature of `datasets`."""
        from datasets import List, Value

        return List(Value(self._items[0])) if self.type == "list" else Value(self.type)

    def value(self, cell: str) -> Any:
        """The value of a cell; None if it is empty, or a missing number."""
        kind = self.type
        if not cell or (kind in NUMERIC and cell in MISSING_WORDS):
            return None
        try:
            value = CONVERSIONS[kind](cell)
        except ValueError:
            return None  # a word for a missing list
        return value if kind != "float64" or not math.isnan(value) else None


def columns_of(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[Column]:
    """The columns of a table with these cells."""
    columns = [Column(name) for name in names]
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            column.add(cell)
    return columns


def features_of(columns: Iterable[Column]) -> Features:
    """The features of a table with these columns."""
    from datasets import Features

    return Features({column.name: column.feature for column in columns})

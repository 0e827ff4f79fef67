"""JsonLines: an append-only file of JSON lines that survives a killed writer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from search_spaces.errors import DAMAGE, InputError, described

T = TypeVar("T")


class JsonLines(Generic[T]):
    """A file of JSON lines, for one writer at a time.

    A last line that was cut short when the writer was killed is ignored, and removed by the next `append`.

    Args:
        path: The file; it is created by the first `append`.
        parse: Converts a decoded line; may raise what is in `DAMAGE`.
        row: What a line is, for error messages, such as ``a measurement``.
        fix: What to do about a damaged line, for error messages.
    """

    def __init__(self, path: Path, parse: Callable[[Any], T], *, row: str, fix: str) -> None:
        self.path, self._parse, self._row, self._fix = path, parse, row, fix
        self._rows: list[T] = []
        self._end = 0

    def read(self) -> list[T]:
        """The rows of the file; lines that were read before are not parsed again.

        Raises:
            InputError: If a complete line is damaged.
        """
        data = self.path.read_bytes() if self.path.exists() else b""
        if len(data) < self._end:
            self._rows, self._end = [], 0
        for line in data[self._end : data.rfind(b"\n") + 1].splitlines(keepends=True):
            self._rows.append(self._parse_line(line))
            self._end += len(line)
        return list(self._rows)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows; they are on disk when this returns."""
        self.read()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.truncate(self._end)
            file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())

    def _parse_line(self, line: bytes) -> T:
        try:
            return self._parse(json.loads(line))
        except DAMAGE as error:
            raise InputError(
                f"every line of `{self.path}` must be {self._row}, but line {len(self._rows) + 1} is not "
                f"({described(error)}); {self._fix}."
            ) from error

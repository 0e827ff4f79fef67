"""What a refusal must look like, and what a folder holds before and after it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Refused = Callable[..., str]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; the lock is no result."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def one_line(code: object, stderr: str, says: tuple[str, ...]) -> str:
    """Asserts exit code 2 and one line that says all of this."""
    assert code == 2, stderr
    assert stderr.count("\n") == 1 and stderr.startswith("nas: "), stderr
    assert "Traceback" not in stderr
    assert not ("but got" in stderr and "(got " in stderr), f"says twice what it got: {stderr!r}"
    for text in says:
        assert text in stderr, f"{text!r} is not in {stderr!r}"
    return stderr


def cut(file: Path) -> None:
    """Loses the second half of a file."""
    os.truncate(file, file.stat().st_size // 2)


SEARCHED = ("study.log", "trials.csv", "verified.jsonl", "front.json", "report.html")
"""What a search and the stages after it write into a run."""


def read_lines(path: Path) -> list[Any]:
    """A JSON lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]

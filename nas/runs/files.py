"""Whole-or-nothing writes, JSON, digest, folders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from search_spaces import InputError


def read_json(path: Path, delete: Path | None = None) -> Any:
    """Reads a JSON file of a run.

    Args:
        path: The file.
        delete: What to delete if it cannot be read; by default the file, where it is a stage's whole result.

    Raises:
        InputError: If it is missing or truncated.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"`{path}` cannot be read ({error}); delete `{delete or path}` and type the same command again to make it "
            "anew."
        ) from None


def write_json(path: Path, data: Any) -> None:
    """Writes JSON whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def partial_path(target: Path) -> Path:
    """Where a stage's result is built."""
    return target.with_name(f"{target.name}.partial")


def delete(path: Path) -> None:
    """Removes a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_folder(work: Path, target: Path) -> None:
    """Moves a finished folder to its place, over what was there."""
    old = target.with_name(f".{target.name}.old")
    delete(old)
    if target.exists():
        os.replace(target, old)
    os.replace(work, target)
    delete(old)


def digest(file: Path) -> str:
    """Ten hexadecimal digits that identify the content of a file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:10]

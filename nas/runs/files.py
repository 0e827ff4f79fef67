"""Files and folders of a run: atomic writes, JSON, hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from search_spaces import InputError


def read_json(path: Path, to_delete: Path | None = None) -> Any:
    """Reads a JSON file of a run.

    Args:
        path: The file.
        to_delete: What the user should delete if the file cannot be read: the result of a stage; default: the file.

    Raises:
        InputError: If it is missing or truncated.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"`{path}` cannot be read ({error}); delete `{to_delete or path}` and run the same command again."
        ) from None


def write_json(path: Path, data: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: a reader sees the old or the new text, never part of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def partial_path(target: Path) -> Path:
    """Where the result of a stage is built before it is moved to ``target``."""
    return target.with_name(f"{target.name}.partial")


def delete(path: Path) -> None:
    """Deletes a file or folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_folder(work: Path, target: Path) -> None:
    """Moves a finished folder to its place; an older folder there is replaced."""
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

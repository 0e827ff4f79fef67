"""Files and folders: writes that are whole or not at all, JSON, hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from search_spaces import InputError
from search_spaces.errors import DAMAGE, described


def mapping(data: Any) -> dict[str, Any]:
    """The decoded content of a JSON file that holds a mapping.

    Raises:
        TypeError: If it is something else.
    """
    if not isinstance(data, dict):
        raise TypeError(f"it must hold a mapping, but holds a {type(data).__name__}")
    return data


def read_json(path: Path, to_delete: Path | None = None, parse: Callable[[Any], Any] = mapping) -> Any:
    """Reads a JSON file of a run.

    Args:
        path: The file.
        to_delete: What the user should delete if the file cannot be read: the result of a stage; default: the file.
        parse: Converts the decoded content; it may raise what is in `DAMAGE`. By default the content is a mapping.

    Raises:
        InputError: If it is missing, truncated, or holds something else than this version writes.
    """
    try:
        return parse(json.loads(path.read_bytes()))
    except (OSError, *DAMAGE) as error:
        raise InputError(
            f"`{path}` cannot be read ({described(error)}); if a later version wrote it, use that one; else delete "
            f"`{to_delete or path}` and run the same command again."
        ) from None


def link(file: Path, target: Path) -> None:
    """Gives a file another name, without a copy where both are on one disk."""
    try:
        os.link(file.resolve(), target)
    except OSError:
        shutil.copy2(file, target)


def write_json(path: Path, data: Any) -> None:
    """Writes JSON, whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all: a reader sees the old or the new text, never part of it.

    Raises:
        InputError: If something else than a regular file has its name.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file next to ``path``, which takes its name when the block ends without an error.

    A link is followed: the file that it names is replaced.

    Raises:
        InputError: If something else than a regular file has its name.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise InputError(f"a file that is written must be a regular one, but `{path}` is not; choose another name.")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def check_place(folder: Path, option: str) -> None:
    """Raises InputError unless a folder can be written where it is or would be.

    Args:
        folder: It need not exist.
        option: The option that names it.
    """
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise InputError(f"`{option}` must be a folder, but `{place}` is none; choose another place.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"`{option}` must be a folder that can be written, but `{place}` cannot; choose another.")


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
    """Moves a finished folder to its place; an older folder there is replaced, or stays if the move fails."""
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        delete(old)
        os.replace(target, old)
    try:
        os.replace(work, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
    delete(old)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """A block in which no other process writes a folder.

    Raises:
        InputError: If another one does.
    """
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except Timeout:
        raise InputError(
            f"another process is writing `{folder}`; wait for it, or choose another folder with --out."
        ) from None


def digest(file: Path) -> str:
    """Ten hexadecimal digits that identify the content of a file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:10]

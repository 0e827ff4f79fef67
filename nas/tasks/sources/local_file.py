"""Reads one local file of data of any format into a dataset on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.tasks.sources.cells import features_of
from nas.tasks.sources.delimited import DELIMITERS, DelimitedFile
from nas.tasks.sources.json_file import json_features, json_rows
from nas.tasks.sources.opened import check_text, file_kind, is_compressed, open_bytes, open_text
from search_spaces import InputError
from search_spaces.errors import short_error

if TYPE_CHECKING:
    from datasets import Dataset, Features

BINARY = {".parquet": "parquet", ".arrow": "arrow"}
"""Suffix of a file that is no text -> its builder in `datasets`."""
JSON = (".json", ".jsonl", ".ndjson")
TEXT = (".txt", ".text")
KINDS = (*DELIMITERS, *JSON, *BINARY, *TEXT)
"""Suffixes of files that can be read; text may be compressed."""
LINES_PER_ROW = 1000
"""Lines of a plain text file that are joined to one row, so that lines keep their order."""
VERSION = 2
"""Of what the readers make of a file; another one reads it anew."""


def load_file(path: Path, *, by_line: bool = False) -> Dataset:
    """Loads all rows of a file.

    Args:
        path: The file; the suffix says its format, in small or capital letters.
        by_line: Whether each line of a plain text file is a row; else lines are joined, as one text.

    Raises:
        InputError: If it does not exist or cannot be read.
    """
    kind = file_kind(path)
    if kind not in KINDS:
        raise InputError(
            f"the suffix of a data file must be {', '.join(KINDS)} (text also with .gz, .bz2, .xz, .zst or .zip), but "
            f"got `{path}`; rename it or write it in one of these."
        )
    with open_bytes(path) as file:
        if not file.read(1):
            raise InputError(f"`{path}` must hold examples, but is empty.")
    if kind in BINARY:
        return _load_binary(path, kind)
    return _load_rows(path, kind, by_line)


def _load_binary(path: Path, kind: str) -> Dataset:
    from datasets import load_dataset

    if is_compressed(path):
        raise InputError(f"`{path}` must not be compressed, as {kind} files are already; unpack it.")
    try:
        return load_dataset(BINARY[kind], data_files=str(path), split="train")
    except Exception as error:
        raise _refusal(path, kind, error) from error


def _checked_features(path: Path, kind: str, by_line: bool) -> Features:
    """The types of the columns of a text file; InputError if it cannot be read or has no rows."""
    from datasets import Features, Value

    check_text(path)
    if next(_rows(path, kind, by_line), None) is None:
        raise InputError(f"`{path}` must hold examples, but has no rows.")
    if kind in DELIMITERS:
        return features_of(DelimitedFile(path, kind).columns)
    return json_features(path, kind) if kind in JSON else Features({"text": Value("string")})


def _load_rows(path: Path, kind: str, by_line: bool) -> Dataset:
    """The rows of a text file; a file that was read before, and has not changed since, is not looked at again."""
    from datasets import Dataset, config
    from datasets.fingerprint import Hasher

    state = path.stat()
    fingerprint = Hasher.hash((str(path.resolve()), state.st_size, state.st_mtime_ns, by_line, VERSION))
    cached = Path(config.HF_DATASETS_CACHE, "generator", f"default-fingerprint={fingerprint}", "0.0.0")
    features = None if (cached / "dataset_info.json").is_file() else _checked_features(path, kind, by_line)
    given = {"path": path, "kind": kind, "by_line": by_line}
    try:
        return Dataset.from_generator(_rows, features, gen_kwargs=given, fingerprint=fingerprint)
    except InputError:
        raise
    except Exception as error:
        raise _refusal(path, kind, error) from error


def _refusal(path: Path, kind: str, error: Exception) -> InputError:
    """What to say of a file that cannot be read, or of the cache if that cannot be written."""
    from datasets import config

    cache = str(config.HF_DATASETS_CACHE)
    cause = first_cause(error)
    if "No space left" in cause or cache in cause:
        return InputError(
            f"the cache of data sets must be a folder that can be written, but `{cache}` cannot ({cause}); free some "
            "space, or set HF_HOME to another folder."
        )
    return InputError(f"`{path}` cannot be read as {kind}: {cause}")


def _rows(path: Path, kind: str, by_line: bool) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file."""
    if kind in DELIMITERS:
        return DelimitedFile(path, kind).rows()
    return json_rows(path, kind) if kind in JSON else _text_rows(path, by_line)


def _text_rows(path: Path, by_line: bool) -> Iterator[dict[str, Any]]:
    """Yields lines without breaks and empty ones, or rows of many lines."""
    with open_text(path) as file:
        lines: list[str] = []
        for line in file:
            if not by_line:
                lines.append(line.replace("\r\n", "\n"))
            elif line.strip():
                yield {"text": line.strip()}
            if len(lines) == LINES_PER_ROW:
                yield {"text": "".join(lines)}
                lines = []
        if lines:
            yield {"text": "".join(lines)}


def first_cause(error: BaseException) -> str:
    """The message of what made a library fail, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return short_error(error)

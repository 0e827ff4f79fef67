"""Reads a folder of data: one of `save_to_disk`, a cloned data set, or images or recordings in subfolders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.tasks.sources.local_file import BINARY, KINDS, first_cause, load_file
from nas.tasks.sources.opened import file_kind
from nas.tasks.sources.parts import take_part
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset

MOST_FILES = 2000
"""Files of a folder that are looked at to tell what it is."""
METADATA, FILE_NAME = "metadata.csv", "file_name"
"""File that names the images or recordings of a folder, and its column of names."""
NOT_DATA = ("", ".md", ".yaml", ".yml", ".lock", ".py", ".gitattributes")
"""Suffixes of files beside the data."""


def load_folder(path: Path, part: str, folder_builder: str, *, by_line: bool = False) -> Dataset:
    """Loads a part of a folder.

    Args:
        path: The folder.
        part: What follows the colon of the source.
        folder_builder: Builder of `datasets` for a folder of files: ``imagefolder`` or ``audiofolder``.
        by_line: Whether each line of a plain text file is a row.

    Raises:
        InputError: If it holds no data, or that cannot be read.
    """
    try:
        if (path / "dataset_dict.json").is_file():
            splits: Mapping[str, Dataset] = _load_saved(path)
        elif (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
            splits = {"train": _load_saved(path)}
        elif (path / METADATA).is_file():
            splits = {"train": _load_described(path, folder_builder)}
        elif _has_tables(path):
            splits = _load_tables(path, None, by_line)
        else:
            splits = _load_builder(folder_builder, data_dir=str(path))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the folder `{path}` cannot be read as a data set: {first_cause(error)}") from error
    return take_part(splits, part, str(path))


def load_configuration(path: Path, name: str, part: str, *, by_line: bool = False) -> Dataset:
    """Loads a part of one configuration of a cloned data set: ``folder/name:part``.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return take_part(_load_tables(path, name, by_line), part, f"{path}/{name}")
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"`{name}` of the folder `{path}` cannot be read: {first_cause(error)}") from error


def has_configurations(path: Path) -> bool:
    """Whether a folder is a cloned data set with a README, which names its configurations."""
    return (path / "README.md").is_file() and _has_tables(path)


def _load_saved(path: Path) -> Any:
    from datasets import load_from_disk

    return load_from_disk(str(path))


def _load_described(path: Path, folder_builder: str) -> Dataset:
    """Images or recordings that a ``metadata.csv`` names, with its other columns as our reader of CSV takes them.

    A column such as ``mask_file_name`` names more files, as in `datasets`: they are in the column ``mask``.
    """
    from datasets import Audio, Image

    rows = load_file(path / METADATA)
    if FILE_NAME not in rows.column_names:
        raise InputError(f"`{path / METADATA}` must have a column `{FILE_NAME}`, but has {rows.column_names}.")
    name, feature = ("audio", Audio()) if folder_builder == "audiofolder" else ("image", Image())
    others = [column for column in rows.column_names if column.endswith(f"_{FILE_NAME}")]
    for column, new in [(FILE_NAME, name), *((each, each.removesuffix(f"_{FILE_NAME}")) for each in others)]:
        files = [str(path / file) for file in rows[column]]
        rows = rows.remove_columns(column).add_column(new, files).cast_column(new, feature)
    return rows


def _load_builder(builder: str, **options: Any) -> Mapping[str, Dataset]:
    from datasets import load_dataset

    loaded: Mapping[str, Dataset] = load_dataset(builder, **options)
    return loaded


def _load_tables(path: Path, name: str | None, by_line: bool) -> Mapping[str, Dataset]:
    """All splits of a data set by the names of its files, or by its README; text is read by our readers."""
    from datasets import concatenate_datasets, load_dataset_builder

    files = load_dataset_builder(str(path), name).config.data_files
    splits = {str(split): [Path(file) for file in names] for split, names in files.items()}
    if any(file_kind(file) not in KINDS or file_kind(file) in BINARY for names in splits.values() for file in names):
        return _load_builder(str(path), name=name)
    loaded = {split: [load_file(file, by_line=by_line) for file in names] for split, names in splits.items()}
    return {split: concatenate_datasets(parts) for split, parts in loaded.items()}


def _has_tables(path: Path) -> bool:
    """Whether a folder holds files of rows, and not mainly images or recordings."""
    tables = others = 0
    for _, names, files in os.walk(path):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for file in files:
            suffix, is_metadata = Path(file).suffix.lower(), file.lower().startswith(("metadata.", "dataset_info"))
            tables += suffix in KINDS and not is_metadata
            others += suffix not in (*KINDS, *NOT_DATA)
        if tables + others > MOST_FILES:
            break
    return tables > others

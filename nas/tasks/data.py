"""Data sources: a name in a recipe becomes a `datasets.Dataset`, and its columns are checked."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.runs.progress import print_line
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset
from nas.recipe.text import split_source

BUILDERS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".txt": "text",
}
BUILDER_OPTIONS: dict[str, dict[str, Any]] = {".tsv": {"delimiter": "\t"}, ".txt": {"keep_linebreaks": True}}
TEXT_DTYPES = ("string", "large_string")
LINES_PER_ROW = 1000
"""Lines of a plain text file that make one row, so that what follows a line stays behind it."""


def load_source(source: str, folder_builder: str = "imagefolder") -> Dataset:
    """Loads one split.

    Args:
        source: ``hub/id[/config]:split``, a CSV, TSV, JSON lines, Parquet or plain text file, a folder of images or
            recordings (one folder a class, or a ``metadata.csv``), or ``file.py:function``.
        folder_builder: How `datasets` reads a folder: ``imagefolder`` or ``audiofolder``.

    Raises:
        InputError: If there is nothing by that name, or it cannot be read.
    """
    name, split = split_source(source)
    path = Path(name)
    if path.suffix == ".py":
        return dataset_from_function(path, split, "data source")
    if path.suffix in BUILDERS or path.is_dir():
        return _from_local(path, split, folder_builder)
    return _from_hub(name, split)


def require_column(dataset: Dataset, column: str, source: str, key: str) -> None:
    """Raises InputError unless the column is there."""
    if column not in dataset.column_names:
        raise InputError(
            f"`{source}` has no column `{column}`, only {dataset.column_names}; name the right one in `{key}`."
        )


def text_columns(dataset: Dataset, requested: list[str] | str | None, source: str) -> list[str]:
    """The one or two text columns: those the recipe names, else the columns of strings in order."""
    columns = _requested_columns(dataset, requested, source)
    if requested is None and len(columns) == 2:
        print_line(f"texts      pairs of `{columns[0]}` and `{columns[1]}`; `task.text` names others")
    if len(columns) not in (1, 2):
        raise InputError(
            f"`task.text` must name one text column or a pair, but `{source}` offers "
            f"{columns or dataset.column_names}."
        )
    for column in columns:
        require_texts(dataset, column, source)
    return columns


def text_column(dataset: Dataset, requested: list[str] | str | None, source: str) -> str:
    """The one text column: the one the recipe names, else the first column of strings."""
    columns = _requested_columns(dataset, requested, source)
    if not columns or (requested is not None and len(columns) > 1):
        raise InputError(
            f"`task.text` must name one text column, but `{source}` offers {columns or dataset.column_names}."
        )
    require_texts(dataset, columns[0], source)
    return columns[0]


def string_columns(dataset: Dataset) -> list[str]:
    """The columns of strings, in order."""
    return [name for name, feature in dataset.features.items() if getattr(feature, "dtype", None) in TEXT_DTYPES]


def _requested_columns(dataset: Dataset, requested: list[str] | str | None, source: str) -> list[str]:
    if requested is None:
        return string_columns(dataset)
    columns = [requested] if isinstance(requested, str) else requested
    for column in columns:
        require_column(dataset, column, source, "task.text")
    return columns


def require_texts(dataset: Dataset, column: str, source: str, key: str = "task.text") -> None:
    """Raises InputError unless every row of a column has a text."""
    dtype = getattr(dataset.features[column], "dtype", None)
    if dtype not in TEXT_DTYPES:
        raise InputError(f"`{key}` must name columns of text, but `{column}` of `{source}` is {dtype}.")
    empty = dataset.data.column(column).null_count
    if empty:
        raise InputError(f"every row of `{source}` must have a text, but `{column}` has {empty} empty; remove them.")


def require_images(dataset: Dataset, column: str, source: str) -> None:
    """Raises InputError unless the column is there and holds images."""
    from datasets import Image

    require_column(dataset, column, source, "task.image")
    feature = dataset.features[column]
    if not isinstance(feature, Image):
        raise InputError(f"`task.image` must name a column of images, but `{column}` of `{source}` is {feature}.")


def python_function(path: Path, name: str, purpose: str) -> Callable[..., Any]:
    """A function of a Python file.

    Args:
        path: The file; it is run.
        name: The function.
        purpose: What it is for, in an error.

    Raises:
        InputError: If there is no such file or function, or the file fails.
    """
    if not path.is_file():
        raise InputError(f"{purpose} `{path}:{name}` must name a Python file, but there is none at `{path}`.")
    try:
        function = runpy.run_path(str(path)).get(name)
    except Exception as error:
        raise InputError(f"{purpose} `{path}:{name}` fails: {type(error).__name__}: {short_error(error)}") from error
    if not callable(function):
        raise InputError(f"`{path}` must define a function `{name}` for the {purpose}, but got no such function.")
    return function


def dataset_from_function(path: Path, function: str, purpose: str, *datasets: Dataset) -> Dataset:
    """The dataset that a function of a Python file makes, of another one if one is given.

    Raises:
        InputError: If there is no such function, it fails, or it makes something else.
    """
    from datasets import Dataset

    build = python_function(path, function, purpose)
    try:
        dataset = build(*datasets)
    except Exception as error:
        raise InputError(
            f"{purpose} `{path}:{function}` fails: {type(error).__name__}: {short_error(error)}"
        ) from error
    if not isinstance(dataset, Dataset):
        raise InputError(f"`{path}:{function}` must give a datasets.Dataset, but got {type(dataset).__name__}.")
    return dataset


def augment(examples: Dataset, source: str) -> Dataset:
    """What ``file.py:function`` makes of training examples.

    Raises:
        InputError: If it cannot be called, or gives no examples with the columns they had.
    """
    file, name = split_source(source)
    dataset = dataset_from_function(Path(file), name, "augmentation", examples)
    missing = [column for column in examples.column_names if column not in dataset.column_names]
    if missing or not len(dataset):
        problem = f"lack `{missing[0]}`" if missing else "are none"
        raise InputError(f"`{source}` must give training examples with all their columns, but its own {problem}.")
    return dataset


def _from_local(path: Path, split: str, folder_builder: str) -> Dataset:
    from datasets import load_dataset

    if not path.exists():
        raise InputError(f"there is no data file `{path}`; check `task.train` and `task.test`.")
    try:
        if path.is_dir():
            return load_dataset(folder_builder, data_dir=str(path), split=split or "train")
        options = BUILDER_OPTIONS.get(path.suffix, {})
        loaded = load_dataset(BUILDERS[path.suffix], data_files=str(path), split="train", **options)
    except Exception as error:
        raise InputError(
            f"`{path}` cannot be read as {path.suffix or folder_builder}: {short_error(error)}"
        ) from error
    return _join_lines(loaded) if path.suffix == ".txt" else loaded


def _join_lines(lines: Dataset) -> Dataset:
    """Pieces of a plain text, each of many lines."""

    def join(rows: dict[str, list[str]]) -> dict[str, list[str]]:
        return {"text": ["".join(rows["text"])]}

    return lines.map(join, batched=True, batch_size=LINES_PER_ROW)


def _from_hub(name: str, split: str) -> Dataset:
    from datasets import load_dataset

    candidates: list[tuple[str, str | None]] = [(name, None)]
    if "/" in name:
        dataset, _, config = name.rpartition("/")
        candidates.append((dataset, config))
    for path, subset in candidates:
        try:
            return load_dataset(path, subset, split=split or "train")
        except (FileNotFoundError, ConnectionError) as error:
            last_error: Exception = error
        except Exception as error:
            raise InputError(f"data set `{name}:{split}` cannot be loaded: {short_error(error)}") from error
    raise InputError(
        f"there is no data set `{name}` here or on the hub ({type(last_error).__name__}); check the spelling and the "
        "connection, or give a local CSV, JSON lines, Parquet or text file."
    )


def short_error(error: Exception) -> str:
    """The first line of an error, cut to a readable length."""
    return " ".join(str(error).split())[:200] or type(error).__name__

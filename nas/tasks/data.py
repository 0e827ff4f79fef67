"""Data sources: loads the `datasets.Dataset` that a recipe names and checks its columns."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.recipe.text import split_source
from nas.runs.progress import print_line
from nas.tasks.sources.folder import has_configurations, load_configuration, load_folder
from nas.tasks.sources.local_file import KINDS, first_cause, load_file
from nas.tasks.sources.opened import file_kind
from nas.tasks.sources.parts import take_part
from search_spaces import InputError
from search_spaces.errors import short_error

if TYPE_CHECKING:
    from datasets import Dataset

TEXT_DTYPES = ("string", "large_string")


def load_source(source: str, folder_builder: str = "imagefolder", *, by_line: bool = False) -> Dataset:
    """Loads one split.

    Args:
        source: ``hub/id[/config]:split``; a CSV, TSV, JSON, Parquet or plain text file; a folder of images or
            recordings (one subfolder per class, or a ``metadata.csv``), of a cloned data set or of `save_to_disk`;
            all with a part such as ``train[:80%]``; or ``file.py:function``.
        folder_builder: Builder of `datasets` that reads a folder: ``imagefolder`` or ``audiofolder``.
        by_line: Whether each line of a plain text file is a row; else lines are joined, as one text.

    Raises:
        InputError: If the source does not exist or cannot be read.
    """
    name, part = split_source(source)
    path = Path(name)
    if path.suffix == ".py":
        return dataset_from_function(path, part, "data source")
    if path.is_dir():
        return load_folder(path, part, folder_builder, by_line=by_line)
    if path.is_file() or file_kind(path) in KINDS:
        return take_part({"train": load_file(path, by_line=by_line)}, part, name)
    if path.parent != Path() and has_configurations(path.parent):
        return load_configuration(path.parent, path.name, part, by_line=by_line)
    return _from_hub(name, part)


def require_column(dataset: Dataset, column: str, source: str, key: str) -> None:
    """Raises InputError if the column does not exist; ``key`` is the key of the recipe that names it."""
    if column not in dataset.column_names:
        raise InputError(
            f"`{source}` has no column `{column}`, only {dataset.column_names}; name one of them in `{key}`."
        )


def text_columns(dataset: Dataset, requested: list[str] | str | None, source: str) -> list[str]:
    """Returns the one or two text columns: those of the recipe, else all string columns in order."""
    columns = _requested_columns(dataset, requested, source)
    if requested is None and len(columns) == 2:
        print_line(f"texts      using columns `{columns[0]}`, `{columns[1]}`; set `task.text` to choose others")
    if len(columns) not in (1, 2):
        raise InputError(
            f"`task.text` must name one or two text columns, but `{source}` has {columns or dataset.column_names}."
        )
    for column in columns:
        require_texts(dataset, column, source)
    return columns


def text_column(dataset: Dataset, requested: list[str] | str | None, source: str) -> str:
    """Returns the text column: that of the recipe, else the first string column."""
    columns = _requested_columns(dataset, requested, source)
    if not columns or (requested is not None and len(columns) > 1):
        raise InputError(
            f"`task.text` must name one text column, but `{source}` has {columns or dataset.column_names}."
        )
    require_texts(dataset, columns[0], source)
    return columns[0]


def string_columns(dataset: Dataset) -> list[str]:
    """Returns the string columns in order."""
    return [name for name, feature in dataset.features.items() if getattr(feature, "dtype", None) in TEXT_DTYPES]


def _requested_columns(dataset: Dataset, requested: list[str] | str | None, source: str) -> list[str]:
    if requested is None:
        return string_columns(dataset)
    columns = [requested] if isinstance(requested, str) else requested
    for column in columns:
        require_column(dataset, column, source, "task.text")
    return columns


def require_texts(dataset: Dataset, column: str, source: str, key: str = "task.text") -> None:
    """Raises InputError if the column holds no texts, or a row has none."""
    dtype = getattr(dataset.features[column], "dtype", None)
    if dtype not in TEXT_DTYPES:
        raise InputError(f"`{key}` must name text columns, but `{column}` of `{source}` is {dtype}.")
    empty = dataset.data.column(column).null_count
    if empty:
        raise InputError(
            f"every row of `{source}` must have a text, but `{column}` is empty in {empty} rows; remove them."
        )


def require_images(dataset: Dataset, column: str, source: str, key: str = "task.image") -> None:
    """Raises InputError if the column does not exist or holds no images."""
    from datasets import Image

    require_column(dataset, column, source, key)
    feature = dataset.features[column]
    if not isinstance(feature, Image):
        raise InputError(f"`{key}` must name an image column, but `{column}` of `{source}` is {feature}.")


def python_function(path: Path, name: str, purpose: str) -> Callable[..., Any]:
    """Runs a Python file and returns one of its functions.

    Args:
        path: The file.
        name: Name of the function.
        purpose: What the function is for; errors start with it.

    Raises:
        InputError: If the file or the function does not exist, or running the file fails.
    """
    if not path.is_file():
        raise InputError(f"{purpose} `{path}:{name}` must name a Python file, but `{path}` does not exist.")
    try:
        function = runpy.run_path(str(path)).get(name)
    except Exception as error:
        raise InputError(f"{purpose} `{path}:{name}` fails: {type(error).__name__}: {short_error(error)}") from error
    if not callable(function):
        raise InputError(f"`{path}` must define a function `{name}` for the {purpose}, but it does not.")
    return function


def dataset_from_function(path: Path, function: str, purpose: str, *datasets: Dataset) -> Dataset:
    """Calls a function of a Python file, with the given datasets, and returns the dataset that it builds.

    Raises:
        InputError: If the function does not exist, fails, or returns something else.
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
        raise InputError(f"`{path}:{function}` must return a datasets.Dataset, but got {type(dataset).__name__}.")
    return dataset


def augment(examples: Dataset, source: str) -> Dataset:
    """Augments training examples with ``file.py:function``.

    Raises:
        InputError: If the function fails, returns no examples, or drops a column.
    """
    file, name = split_source(source)
    dataset = dataset_from_function(Path(file), name, "augmentation", examples)
    missing = [column for column in examples.column_names if column not in dataset.column_names]
    if missing or not len(dataset):
        problem = f"they lack `{missing[0]}`" if missing else "there are none"
        raise InputError(f"`{source}` must return training examples with all their columns, but {problem}.")
    return dataset


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
            raise InputError(f"data set `{name}:{split}` cannot be loaded: {first_cause(error)}") from error
    raise InputError(
        f"the data set `{name}` is neither here nor on the hub ({type(last_error).__name__}); check the spelling and "
        "the connection, or use a local CSV, JSON lines, Parquet or text file."
    )

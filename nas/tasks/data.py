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
OPTIONS: dict[str, dict[str, Any]] = {".tsv": {"delimiter": "\t"}, ".txt": {"keep_linebreaks": True}}
TEXT_DTYPES = ("string", "large_string")
LINES_TOGETHER = 1000
"""Lines of a plain text file that make one row, so that what follows a line stays behind it."""


def load_source(source: str, folder: str = "imagefolder") -> Dataset:
    """Loads one split.

    Args:
        source: ``hub/id[/config]:split``, a CSV, TSV, JSON lines, Parquet or plain text file, a folder of images or
            recordings (one folder a class, or a ``metadata.csv``), or ``file.py:function``.
        folder: How `datasets` reads a folder: ``imagefolder`` or ``audiofolder``.

    Raises:
        InputError: If there is nothing by that name, or it cannot be read.
    """
    name, part = split_source(source)
    path = Path(name)
    if path.suffix == ".py":
        return made_by(path, part, "data source")
    if path.suffix in BUILDERS or path.is_dir():
        return _from_local(path, part, folder)
    return _from_hub(name, part)


def need_column(dataset: Dataset, column: str, source: str, key: str) -> None:
    """Raises InputError unless the column is there."""
    if column not in dataset.column_names:
        raise InputError(
            f"`{source}` has no column `{column}`, only {dataset.column_names}; name the right one in `{key}`."
        )


def text_columns(dataset: Dataset, wanted: list[str] | str | None, source: str) -> list[str]:
    """The one or two text columns: those the recipe names, else the columns of strings in order."""
    columns = _wanted(dataset, wanted, source)
    if wanted is None and len(columns) == 2:
        print_line(f"texts      pairs of `{columns[0]}` and `{columns[1]}`; `task.text` names others")
    if len(columns) not in (1, 2):
        raise InputError(
            f"`task.text` must name one text column or a pair, but `{source}` offers "
            f"{columns or dataset.column_names}."
        )
    for column in columns:
        need_texts(dataset, column, source)
    return columns


def text_column(dataset: Dataset, wanted: list[str] | str | None, source: str) -> str:
    """The one text column: the one the recipe names, else the first column of strings."""
    columns = _wanted(dataset, wanted, source)
    if not columns or (wanted is not None and len(columns) > 1):
        raise InputError(
            f"`task.text` must name one text column, but `{source}` offers {columns or dataset.column_names}."
        )
    need_texts(dataset, columns[0], source)
    return columns[0]


def string_columns(dataset: Dataset) -> list[str]:
    """The columns of strings, in order."""
    return [name for name, feature in dataset.features.items() if getattr(feature, "dtype", None) in TEXT_DTYPES]


def _wanted(dataset: Dataset, wanted: list[str] | str | None, source: str) -> list[str]:
    if wanted is None:
        return string_columns(dataset)
    columns = [wanted] if isinstance(wanted, str) else wanted
    for column in columns:
        need_column(dataset, column, source, "task.text")
    return columns


def need_texts(dataset: Dataset, column: str, source: str, key: str = "task.text") -> None:
    """Raises InputError unless every row of a column has a text."""
    dtype = getattr(dataset.features[column], "dtype", None)
    if dtype not in TEXT_DTYPES:
        raise InputError(f"`{key}` must name columns of text, but `{column}` of `{source}` is {dtype}.")
    empty = dataset.data.column(column).null_count
    if empty:
        raise InputError(f"every row of `{source}` must have a text, but `{column}` has {empty} empty; remove them.")


def need_images(dataset: Dataset, column: str, source: str) -> None:
    """Raises InputError unless the column is there and holds images."""
    from datasets import Image

    need_column(dataset, column, source, "task.image")
    feature = dataset.features[column]
    if not isinstance(feature, Image):
        raise InputError(f"`task.image` must name a column of images, but `{column}` of `{source}` is {feature}.")


def python_function(path: Path, name: str, what: str) -> Callable[..., Any]:
    """A function of a Python file.

    Args:
        path: The file; it is run.
        name: The function.
        what: What it is for, in an error.

    Raises:
        InputError: If there is no such file or function, or the file fails.
    """
    if not path.is_file():
        raise InputError(f"{what} `{path}:{name}` must name a Python file, but there is none at `{path}`.")
    try:
        found = runpy.run_path(str(path)).get(name)
    except Exception as error:
        raise InputError(f"{what} `{path}:{name}` fails: {type(error).__name__}: {one_line(error)}") from error
    if not callable(found):
        raise InputError(f"`{path}` must define a function `{name}` for the {what}, but got no such function.")
    return found


def made_by(path: Path, function: str, what: str, *given: Dataset) -> Dataset:
    """The dataset that a function of a Python file makes, of another one if one is given.

    Raises:
        InputError: If there is no such function, it fails, or it makes something else.
    """
    from datasets import Dataset

    make = python_function(path, function, what)
    try:
        made = make(*given)
    except Exception as error:
        raise InputError(f"{what} `{path}:{function}` fails: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(made, Dataset):
        raise InputError(f"`{path}:{function}` must give a datasets.Dataset, but got {type(made).__name__}.")
    return made


def augmented(examples: Dataset, source: str) -> Dataset:
    """What ``file.py:function`` makes of training examples.

    Raises:
        InputError: If it cannot be called, or gives no examples with the columns they had.
    """
    place, name = split_source(source)
    made = made_by(Path(place), name, "augmentation", examples)
    missing = [column for column in examples.column_names if column not in made.column_names]
    if missing or not len(made):
        got = f"lack `{missing[0]}`" if missing else "are none"
        raise InputError(f"`{source}` must give training examples with all their columns, but its own {got}.")
    return made


def _from_local(path: Path, part: str, folder: str) -> Dataset:
    from datasets import load_dataset

    if not path.exists():
        raise InputError(f"there is no data file `{path}`; check `task.train` and `task.test`.")
    try:
        if path.is_dir():
            return load_dataset(folder, data_dir=str(path), split=part or "train")
        options = OPTIONS.get(path.suffix, {})
        loaded = load_dataset(BUILDERS[path.suffix], data_files=str(path), split="train", **options)
    except Exception as error:
        raise InputError(f"`{path}` cannot be read as {path.suffix or folder}: {one_line(error)}") from error
    return _joined(loaded) if path.suffix == ".txt" else loaded


def _joined(lines: Dataset) -> Dataset:
    """Pieces of a plain text, each of many lines."""

    def join(rows: dict[str, list[str]]) -> dict[str, list[str]]:
        return {"text": ["".join(rows["text"])]}

    return lines.map(join, batched=True, batch_size=LINES_TOGETHER)


def _from_hub(name: str, part: str) -> Dataset:
    from datasets import load_dataset

    candidates: list[tuple[str, str | None]] = [(name, None)]
    if "/" in name:
        dataset, _, config = name.rpartition("/")
        candidates.append((dataset, config))
    for path, subset in candidates:
        try:
            return load_dataset(path, subset, split=part or "train")
        except (FileNotFoundError, ConnectionError) as error:
            last: Exception = error
        except Exception as error:
            raise InputError(f"data set `{name}:{part}` cannot be loaded: {one_line(error)}") from error
    raise InputError(
        f"there is no data set `{name}` here or on the hub ({type(last).__name__}); check the spelling and the "
        "connection, or give a local CSV, JSON lines, Parquet or text file."
    )


def one_line(error: Exception) -> str:
    """The first line of an error, cut to a readable length."""
    return " ".join(str(error).split())[:200] or type(error).__name__

"""Data sources: a name in a recipe becomes a `datasets.Dataset` with a label column of class ids."""

from __future__ import annotations

import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.progress import say
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset

BUILDERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}
TEXT_DTYPES = ("string", "large_string")


def load_source(source: str) -> Dataset:
    """Loads one split.

    Args:
        source: ``hub/id[/config]:split``, a CSV, TSV, JSON lines or Parquet file, a folder of images (one folder a
            class), or ``file.py:function``.

    Raises:
        InputError: If there is nothing by that name, or it cannot be read.
    """
    name, part = split_source(source)
    path = Path(name)
    if path.suffix == ".py":
        return _from_python(path, part)
    if path.suffix in BUILDERS or path.is_dir():
        return _from_local(path, part)
    return _from_hub(name, part)


def split_source(source: str, base: Path = Path()) -> tuple[str, str]:
    """Splits ``place:part`` at its last colon; one in a path, after a drive or in a slice (``train[:9]``) is none."""
    found = re.fullmatch(r"(.+):((?:[^:/\\\[\]]|\[[^\]]*\])*)", source)
    return (source, "") if found is None or (base / source).exists() else (found[1], found[2])


def with_class_ids(dataset: Dataset, column: str, names: list[str] | None, source: str) -> tuple[Dataset, list[str]]:
    """Casts the label column to class ids.

    Args:
        dataset: Any split.
        column: Name of the label column.
        names: Class names found in the training split, or None to find them here.
        source: What to call the data in an error.

    Returns:
        The dataset and the names of its classes.

    Raises:
        InputError: If the column is missing, a row has no label or one that is not among the names, or there is only
            one class.
    """
    from datasets import ClassLabel

    need_column(dataset, column, source, "task.label")
    feature, values = dataset.features[column], _labels(dataset, column, source)
    if isinstance(feature, ClassLabel):
        found = feature.names
    else:
        found = _in_order({_name(v) for v in values})
        ids = {name: k for k, name in enumerate(names or found)}
        unknown = [name for name in found if name not in ids]
        if unknown:
            raise InputError(
                f"labels of `{source}` must be among the training labels {list(ids)}, but got {unknown[:5]}; "
                "an unlabelled split cannot be reported on, choose another split."
            )
        dataset = relabelled(dataset, column, [ids[_name(v)] for v in dataset[column]], names or found)
    if names is not None and isinstance(feature, ClassLabel) and found != names:
        raise InputError(f"labels of `{source}` must be those of the training data {names}, but got {found}.")
    if len(names or found) < 2:
        raise InputError(f"`{source}` must hold at least two classes, but got only {found}.")
    return dataset, names or found


def relabelled(dataset: Dataset, column: str, ids: Sequence[int], names: list[str]) -> Dataset:
    """The dataset with other class ids, one a row."""
    from datasets import ClassLabel

    dataset = dataset.add_column("class id", list(ids), feature=ClassLabel(names=names))
    return dataset.remove_columns(column).rename_column("class id", column)


def head_order(names: list[str], head: list[str], model: str, has_ids: bool) -> list[int]:
    """The output of a trained head for every class of the data.

    Args:
        names: Class names of the data by id.
        head: Class names of the head by output.
        model: What to call the model in an error.
        has_ids: Whether the data itself gives ids, not only names; a head without names is then taken to follow them.

    Returns:
        The output by the data's class id: that of the same name, or the same id if the data has no names.

    Raises:
        InputError: If the head has other classes.
    """
    if len(head) != len(names):
        raise InputError(
            f"the model's head must have one output a class, but `{model}` has {len(head)} and the data {len(names)} "
            f"({', '.join(names[:5])}); choose other data, or a model without a head to fine-tune one."
        )
    if all(map(_is_integer, names)):
        return list(range(len(head)))
    for same in (str, str.casefold):
        outputs = {same(name): k for k, name in enumerate(head)}
        if outputs.keys() == {same(name) for name in names}:
            return [outputs[same(name)] for name in names]
    if has_ids and head == [f"LABEL_{k}" for k in range(len(head))]:
        say(f"labels     {', '.join(f'{a} = {b}' for a, b in zip(head, names, strict=True))}: by the ids of the data")
        return list(range(len(head)))
    raise InputError(
        f"the labels of the data must be those of the model's head, but `{model}` has {head[:5]} and the data "
        f"{names[:5]}; rename them in the data, or give the head's numbers as labels."
    )


def _name(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) else str(label)


def _is_integer(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _in_order(names: set[str]) -> list[str]:
    """Class names in the order of their ids: integers by value, others by letter."""
    return sorted(names, key=lambda name: (int(name), name)) if all(map(_is_integer, names)) else sorted(names)


def _labels(dataset: Dataset, column: str, source: str) -> list[Any]:
    """The distinct labels; InputError unless every row has one."""
    from datasets import ClassLabel, Value

    feature = dataset.features[column]
    if not len(dataset):
        raise InputError(f"`{source}` must hold examples to train or report on, but it has no examples.")
    if not isinstance(feature, (ClassLabel, Value)):
        raise InputError(
            f"`task.label` must name a column of one label a row, but `{column}` of `{source}` is {feature}."
        )
    values = dataset.unique(column)
    missing = [v for v in values if v is None or v != v or (isinstance(feature, ClassLabel) and v < 0)]
    if missing:
        raise InputError(
            f"every row of `{source}` must have a label, but some are unlabelled ({column} {missing[0]}); choose "
            "another split, or remove those rows."
        )
    other = [v for v in values if not isinstance(v, (bool, int, str)) and not (isinstance(v, float) and v % 1 == 0)]
    if other:
        raise InputError(
            f"labels must be integers, booleans or strings, but `{column}` of `{source}` holds {other[0]!r}; "
            "regression is not supported yet, name a column of classes in `task.label`."
        )
    return values


def need_column(dataset: Dataset, column: str, source: str, key: str) -> None:
    """Raises InputError unless the column is there."""
    if column not in dataset.column_names:
        raise InputError(
            f"`{source}` has no column `{column}`, only {dataset.column_names}; name the right one in `{key}`."
        )


def text_columns(dataset: Dataset, wanted: list[str] | str | None, source: str) -> list[str]:
    """The one or two text columns: those the recipe names, else the columns of strings in order."""
    if wanted is not None:
        columns = [wanted] if isinstance(wanted, str) else wanted
        for column in columns:
            need_column(dataset, column, source, "task.text")
    else:
        columns = [n for n, f in dataset.features.items() if getattr(f, "dtype", None) in TEXT_DTYPES]
        if len(columns) == 2:
            say(f"texts      pairs of `{columns[0]}` and `{columns[1]}`; `task.text` names others")
    if len(columns) not in (1, 2):
        raise InputError(
            f"`task.text` must name one text column or a pair, but `{source}` offers "
            f"{columns or dataset.column_names}."
        )
    for column in columns:
        _need_texts(dataset, column, source)
    return columns


def _need_texts(dataset: Dataset, column: str, source: str) -> None:
    dtype = getattr(dataset.features[column], "dtype", None)
    if dtype not in TEXT_DTYPES:
        raise InputError(f"`task.text` must name columns of text, but `{column}` of `{source}` is {dtype}.")
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


def _from_python(path: Path, function: str) -> Dataset:
    from datasets import Dataset

    if not path.is_file():
        raise InputError(f"data source `{path}:{function}` must name a Python file, but there is none at `{path}`.")
    try:
        make = runpy.run_path(str(path)).get(function)
        made = make() if callable(make) else None
    except Exception as error:
        raise InputError(f"data source `{path}:{function}` fails: {type(error).__name__}: {_line(error)}") from error
    if not isinstance(made, Dataset):
        got = type(made).__name__ if callable(make) else "no such function"
        raise InputError(f"`{path}` must define a function `{function}` that gives a datasets.Dataset, but got {got}.")
    return made


def _from_local(path: Path, part: str) -> Dataset:
    from datasets import load_dataset

    if not path.exists():
        raise InputError(f"there is no data file `{path}`; check `task.train` and `task.test`.")
    options = {"delimiter": "\t"} if path.suffix == ".tsv" else {}
    try:
        if path.is_dir():
            return load_dataset("imagefolder", data_dir=str(path), split=part or "train")
        return load_dataset(BUILDERS[path.suffix], data_files=str(path), split="train", **options)
    except Exception as error:
        raise InputError(
            f"`{path}` cannot be read as {path.suffix or 'a folder of images'}: {_line(error)}"
        ) from error


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
            raise InputError(f"data set `{name}:{part}` cannot be loaded: {_line(error)}") from error
    raise InputError(
        f"there is no data set `{name}` here or on the hub ({type(last).__name__}); check the spelling and the "
        "connection, or give a local CSV, JSON lines or Parquet file."
    )


def _line(error: Exception) -> str:
    """The first line of an error, cut to a readable length."""
    return " ".join(str(error).split())[:200] or type(error).__name__

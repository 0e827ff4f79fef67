"""Labels: casts a column of classes, of lists of classes or of numbers to the labels that a head is trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any

from nas.recipe.schema import ProblemType
from nas.runs.progress import print_line
from nas.tasks.data import TEXT_DTYPES, require_column
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset

JOINED = "joined labels"
"""Column that `join_label_columns` adds."""
NUMERIC_DTYPES = ("int", "uint", "float")


def infer_problem_type(dataset: Dataset, column: str, source: str) -> ProblemType | None:
    """Returns the problem type that a label column implies, or None if it is ambiguous.

    Lists are several labels per row, fractional numbers are for regression, strings and booleans name classes.
    Integers may be classes or numbers.
    """
    require_column(dataset, column, source, "task.label")
    feature = dataset.features[column]
    if is_list(feature):
        return "multi_label_classification"
    dtype = _dtype(feature)
    if dtype.startswith("float") and any(v is not None and v % 1 for v in dataset.unique(column)):
        return "regression"
    return (
        None if dtype.startswith(NUMERIC_DTYPES) and not hasattr(feature, "names") else "single_label_classification"
    )


def with_class_ids(dataset: Dataset, column: str, names: list[str] | None, source: str) -> tuple[Dataset, list[str]]:
    """Casts a column of classes, or of lists of classes, to class ids.

    Args:
        dataset: Any split.
        column: Name of the label column.
        names: Class names of the training split; None to take them from this dataset.
        source: Name of the data in errors.

    Returns:
        The dataset and its class names.

    Raises:
        InputError: If the column does not exist, a row has no label or an unknown one, or there is only one class.
    """
    from datasets import ClassLabel

    values, item_feature = _distinct_classes(dataset, column, source), _item_feature(dataset.features[column])
    if isinstance(item_feature, ClassLabel):
        declared = item_feature.names
        name_of: Callable[[Any], str] = declared.__getitem__
    else:
        declared, name_of = _sorted_names({_class_name(v) for v in values}), _class_name
    ids = {name: k for k, name in enumerate(names or declared)}
    unknown = [name for name in dict.fromkeys(map(name_of, values)) if name not in ids]
    if unknown:
        raise InputError(
            f"labels of `{source}` must be among the training labels {list(ids)}, but got {sorted(unknown)[:5]}; "
            "if the split is unlabelled, choose another."
        )
    if not isinstance(item_feature, ClassLabel) or declared != list(ids):
        dataset = relabel(dataset, column, lambda value: ids[name_of(value)], list(ids))
    if len(ids) < 2:
        raise InputError(f"`{source}` must hold at least two classes, but got only {list(ids)}.")
    return dataset, list(ids)


def relabel(dataset: Dataset, column: str, class_id: Callable[[Any], int], names: list[str]) -> Dataset:
    """Returns the dataset with each class of its label column replaced by an id."""
    from datasets import ClassLabel, List

    label, values = ClassLabel(names=names), dataset[column]
    if is_list(dataset.features[column]):
        return _replace_column(dataset, column, [[class_id(v) for v in row] for row in values], List(label))
    return _replace_column(dataset, column, [class_id(v) for v in values], label)


def with_float_labels(dataset: Dataset, column: str, source: str) -> Dataset:
    """Casts a label column to float32.

    Raises:
        InputError: If the column does not exist or does not hold numbers.
    """
    from datasets import Value

    _require_labels(dataset, column, source)
    dtype = _dtype(dataset.features[column])
    if not dtype.startswith(NUMERIC_DTYPES):
        raise InputError(
            f"regression labels must be numbers, but `{column}` of `{source}` holds {dtype or 'lists'}; name another "
            "column in `task.label`."
        )
    values = dataset.unique(column)
    _require_no_missing(values, column, source)
    infinite = next((value for value in values if math.isinf(value)), None)
    if infinite is not None:
        raise InputError(
            f"regression labels must be finite, but `{column}` of `{source}` holds {infinite}; remove it."
        )
    return dataset.cast_column(column, Value("float32"))


def require_different(dataset: Dataset, column: str, source: str) -> None:
    """Raises InputError if all labels are one number, from which nothing can be learned."""
    values = dataset.unique(column)
    if len(values) < 2:
        raise InputError(
            f"regression labels must differ, but all of `{column}` of `{source}` are {values[0]}; name another one in "
            "`task.label`."
        )


def is_multi_hot(dataset: Dataset, column: str) -> bool:
    """Whether a column of lists is multi-hot: one 0 or 1 per class, instead of the classes themselves."""
    if hasattr(_item_feature(dataset.features[column]), "names"):
        return False
    rows = dataset[column][:]
    lengths = {0 if row is None else len(row) for row in rows}
    return len(lengths) == 1 and min(lengths) > 1 and set(chain(*rows)) <= {0, 1}


def multi_hot_to_ids(dataset: Dataset, column: str, classes: int, source: str) -> Dataset:
    """Replaces multi-hot lists of a column by lists of class ids.

    Raises:
        InputError: If a list is not as long as the number of classes.
    """
    from datasets import ClassLabel, List

    rows = dataset[column]
    wrong = [row for row in rows if row is None or len(row) != classes or not set(row) <= {0, 1}]
    if wrong:
        raise InputError(
            f"labels of `{source}` must be {classes} numbers 0 or 1, as in the training data, but got {wrong[0]}."
        )
    ids = [[k for k, is_set in enumerate(row) if is_set] for row in rows]
    return _replace_column(dataset, column, ids, List(ClassLabel(names=[str(k) for k in range(classes)])))


def join_label_columns(dataset: Dataset, columns: list[str], *, single: bool, source: str) -> Dataset:
    """Adds a column `JOINED` of classes from one column of 0 and 1 for each class.

    Args:
        dataset: Any split.
        columns: Names of the columns, which become those of the classes.
        single: Whether every row has exactly one class; else it has a list of any number of them.
        source: Name of the data in errors.

    Raises:
        InputError: If a column does not exist or holds something else, or a row has not one class.
    """
    from datasets import ClassLabel, List

    for column in columns:
        require_column(dataset, column, source, "task.label")
        other = [value for value in dataset.unique(column) if value not in (0, 1) or isinstance(value, str)]
        if other:
            raise InputError(
                f"a column of `task.label` for each class must hold 0 and 1, but `{column}` of `{source}` holds "
                f"{other[0]!r}; name one column, or convert it."
            )
    rows = [[k for k, value in enumerate(row) if value] for row in zip(*(dataset[c] for c in columns), strict=True)]
    label = ClassLabel(names=columns)
    if not single:
        return dataset.add_column(JOINED, rows, feature=List(label))
    wrong = next((k for k, row in enumerate(rows) if len(row) != 1), None)
    if wrong is not None:
        raise InputError(
            f"every row of `{source}` must have one class, but row {wrong} has {len(rows[wrong])} of {columns}; "
            "remove "
            "`task.problem_type` to allow several."
        )
    return dataset.add_column(JOINED, [row[0] for row in rows], feature=label)


def match_head_labels(names: list[str], head: list[str], model: str, has_ids: bool) -> list[int]:
    """Maps the classes of the data to the outputs of a trained head.

    Args:
        names: Class names of the data by id.
        head: Class names of the head by output.
        model: Name of the model in errors.
        has_ids: Whether the data has ids, not only names; they then number the outputs of a head without names.

    Returns:
        The output for each class id of the data: the output of the same name, or of the same id if the data has no
        names.

    Raises:
        InputError: If the classes of the head and the data differ.
    """
    if len(head) != len(names):
        raise InputError(
            f"the model's head must have one output per class, but `{model}` has {len(head)} and the data "
            f"{len(names)} ({', '.join(names[:5])}); choose other data, or a model without a trained head."
        )
    if all(map(_is_integer, names)):
        return list(range(len(head)))
    for normalize in (str, str.casefold):
        outputs = {normalize(name): k for k, name in enumerate(head)}
        if outputs.keys() == {normalize(name) for name in names}:
            return [outputs[normalize(name)] for name in names]
    if has_ids and head == [f"LABEL_{k}" for k in range(len(head))]:
        mapping = ", ".join(f"{a} = {b}" for a, b in zip(head, names, strict=True))
        print_line(f"labels     the head has no names; taken in the order of the data's ids: {mapping}")
        return list(range(len(head)))
    raise InputError(
        f"the labels of the data must be those of the model's head, but `{model}` has {head[:5]} and the data "
        f"{names[:5]}; rename them in the data, or use the indices of the head's outputs as labels."
    )


def has_ids(dataset: Dataset, column: str) -> bool:
    """Whether a label column holds ids, not only names."""
    return _dtype(_item_feature(dataset.features[column])) not in TEXT_DTYPES


def is_list(feature: Any) -> bool:
    """Whether a column holds lists of variable length."""
    from datasets import LargeList, List

    return isinstance(feature, (List, LargeList))


def _item_feature(feature: Any) -> Any:
    return feature.feature if is_list(feature) else feature


def _dtype(feature: Any) -> str:
    return str(getattr(feature, "dtype", ""))


def _replace_column(dataset: Dataset, column: str, values: list[Any], feature: Any) -> Dataset:
    dataset = dataset.add_column("new labels", values, feature=feature)
    return dataset.remove_columns(column).rename_column("new labels", column)


def _class_name(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) else str(label)


def _is_integer(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _sorted_names(names: set[str]) -> list[str]:
    """Sorts class names in the order of their ids: integers by value, other names alphabetically."""
    return sorted(names, key=lambda name: (int(name), name)) if all(map(_is_integer, names)) else sorted(names)


def _distinct_classes(dataset: Dataset, column: str, source: str) -> list[Any]:
    """Returns the distinct classes of a label column; InputError if a row has neither a class nor a list of them."""
    from datasets import ClassLabel, Value

    _require_labels(dataset, column, source)
    feature = dataset.features[column]
    item = _item_feature(feature)
    if not isinstance(item, (ClassLabel, Value)):
        raise InputError(f"`task.label` must name a class column, but `{column}` of `{source}` is {feature}.")
    values = _distinct_in_lists(dataset, column) if is_list(feature) else dataset.unique(column)
    _require_no_missing(values, column, source, lowest=0 if isinstance(item, ClassLabel) else None)
    other = [v for v in values if not isinstance(v, (bool, int, str)) and not (isinstance(v, float) and v % 1 == 0)]
    if other:
        raise InputError(
            f"classes must be integers, booleans or strings, but `{column}` of `{source}` holds {other[0]!r}; name a "
            "class column in `task.label`, or set `task.problem_type` to `regression`."
        )
    if values and all(isinstance(v, str) and v.startswith(tuple("[({")) and v.endswith(tuple("])}")) for v in values):
        raise InputError(
            f"classes must have names, but all of `{column}` of `{source}` are lists written as text, such as "
            f"`{values[0][:40]}`; write them as JSON lines, or as [1, 0] or ['a', 'b'] in a CSV file."
        )
    return values


def _distinct_in_lists(dataset: Dataset, column: str) -> list[Any]:
    """Returns the distinct classes in a column of lists, with None if a row has no list."""
    return list(dict.fromkeys(chain.from_iterable([None] if row is None else row for row in dataset[column])))


def _require_labels(dataset: Dataset, column: str, source: str) -> None:
    require_column(dataset, column, source, "task.label")
    if not len(dataset):
        raise InputError(f"`{source}` must hold examples, but it has none.")


def _require_no_missing(values: list[Any], column: str, source: str, lowest: int | None = None) -> None:
    """Raises InputError if a label is missing: None, NaN or below the lowest id."""
    missing = [v for v in values if v is None or v != v or (lowest is not None and v < lowest)]
    if missing:
        raise InputError(
            f"every row of `{source}` must have a label, but some are unlabelled ({column} {missing[0]}); choose "
            "another split, or remove these rows."
        )

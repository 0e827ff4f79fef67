"""What was read: rows of each split, classes with their counts, an example, lengths, duplicates; in a few lines."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.tasks.batches import LENGTHS
from nas.tasks.context import TaskContext
from nas.tasks.images import CHECKED_IMAGES, undecoded
from nas.tasks.labels import is_list
from nas.tasks.token_table import text_tokenizer
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset

MOST_CLASSES = 8
"""Classes that are listed; of more, the most and the least frequent."""
SHOWN_CHARACTERS = 80
SAMPLED_LENGTHS = 1000
ROWS = 1000
"""Rows that are read at once."""
DIGEST_BYTES = 16
MOST_UNKNOWN = 0.01
"""Share of unknown tokens from which it is said; more is another language, or the tokenizer of another model."""


def data_lines(context: TaskContext) -> list[str]:
    """Describes the data of a recipe as it is read: a line for each property that it has.

    Raises:
        InputError: If two splits hold the same rows.
    """
    task = context.splits.task
    lines = {
        "data": _rows_text(context),
        "classes": _labels_text(task.train, task.label, task.names),
        "in test": _labels_text(task.test, task.label, task.names),
        "example": _example_text(context),
        "lengths": _lengths_text(context),
        "duplicates": _duplicates_text(context),
    }
    return [f"{name:<10} {text}" for name, text in lines.items() if text]


def _rows_text(context: TaskContext) -> str:
    splits, validation = context.splits, context.recipe.task.validation
    trained, read = len(splits.raw_train), len(splits.task.train)
    searching = splits.n_search + splits.n_more
    left = read - trained - (0 if validation else searching)
    unused = f", {left:,} unused" if left > 0 else ""
    searched = f", {searching:,} to search on" if validation is None else ""
    own = "" if validation is None else f", {searching:,} rows of {Path(validation).name} to search on"
    return f"train {read:,} rows ({trained:,} to train on{searched}{unused}){own}, test {len(splits.task.test):,} rows"


def _labels_text(examples: Dataset, label: str | None, names: Sequence[str]) -> str:
    """The classes of a split with the rows of each, or the range of its numbers; "" for other labels."""
    if label is None or label not in examples.column_names:
        return ""
    feature, values = examples.features[label], examples[label][:]
    if names and hasattr(feature.feature if is_list(feature) else feature, "names"):
        ids = Counter(chain.from_iterable(values) if is_list(feature) else values)
        return _counts_text({name: ids[k] for k, name in enumerate(names)})
    if str(getattr(feature, "dtype", "")).startswith("float"):
        return f"numbers from {min(values):.4g} to {max(values):.4g}, mean {np.mean(values):.4g}"
    return ""


def _counts_text(counts: Mapping[str, int]) -> str:
    listed = [f"{name} {count:,}" for name, count in counts.items()]
    if len(counts) > MOST_CLASSES:
        order = sorted(counts, key=lambda name: -counts[name])
        ends = (*order[: MOST_CLASSES // 2], *order[-MOST_CLASSES // 2 :])
        listed = [f"{name} {counts[name]:,}" for name in ends]
        listed.insert(MOST_CLASSES // 2, "…")
    return f"{len(counts):,}: {', '.join(listed)}"


def _example_text(context: TaskContext) -> str:
    """The inputs of the first training example, and its label."""
    task, first = context.splits.task, context.splits.raw_train.select(range(1))
    shown = [_shown(value, context) for row in _inputs(first, task.input_columns(first)) for value in row]
    labels = [_label_text(first, task.label, task.names)] if task.label and task.label in first.column_names else []
    return " -> ".join(part for part in (" | ".join(shown), *labels) if part)


def _label_text(row: Dataset, label: str, names: Sequence[str]) -> str:
    feature, value = row.features[label], row[label][0]
    is_class = names and hasattr(feature.feature if is_list(feature) else feature, "names")
    named = value if not is_class else [names[k] for k in value] if is_list(feature) else names[value]
    return str(named)[:SHOWN_CHARACTERS]


def _shown(value: Any, context: TaskContext) -> str:
    """An input on one line: a text, words, tokens, or the file of an image."""
    if isinstance(value, dict):
        return Path(value["path"]).name if value.get("path") else "an image"
    if isinstance(value, list):
        value = context.processor.decode(value) if value and isinstance(value[0], int) else " ".join(map(str, value))
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _lengths_text(context: TaskContext) -> str:
    """Tokens of the training examples, and how many reach the length at which texts are cut."""
    splits, limit = context.splits, context.recipe.task.max_length
    if "input_ids" not in splits.train.column_names:
        return ""
    rows = splits.train.select(range(0, len(splits.train), max(1, len(splits.train) // SAMPLED_LENGTHS)))
    several = LENGTHS in rows.column_names  # a row holds the tokens of several texts
    lengths = np.array([*chain(*rows[LENGTHS])] if several else [len(ids) for ids in rows["input_ids"]])
    if splits.task.input_columns(splits.task.train) == ("input_ids",):
        return f"blocks of {limit:,} tokens"
    unknown = _unknown_share(rows["input_ids"], context)
    strange = f"; {unknown:.1%} of the tokens are unknown to the tokenizer" if unknown >= MOST_UNKNOWN else ""
    cut = float((lengths >= limit).mean())
    reach = f"{cut:.1%} reach `task.max_length` {limit:,} and may be cut" if cut else f"`task.max_length` is {limit:,}"
    return f"{lengths.min():,} to {lengths.max():,} tokens, half at most {np.median(lengths):,.0f}; {reach}{strange}"


def _unknown_share(rows: Iterable[Sequence[int]], context: TaskContext) -> float:
    """Share of tokens that stand for what the tokenizer does not know; 0 if it has none of its own for that."""
    tokenizer = text_tokenizer(context)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id):
        return 0.0
    ids = np.fromiter(chain.from_iterable(rows), dtype=np.int64)
    return float((ids == unknown).mean()) if len(ids) else 0.0


def _duplicates_text(context: TaskContext) -> str:
    """Rows with the inputs of an earlier one, in the training data and between the splits; refuses equal splits."""
    task, validation = context.splits.task, context.splits.validation
    splits = {"train": task.train, "test": task.test} | ({} if validation is None else {"validation": validation})
    rows = {name: _digests(split, task.input_columns(split)) for name, split in splits.items()}
    if not all(rows.values()):
        return ""
    train = rows["train"]
    repeated, other = len(train) - len({*train}), _contradictions(train, task.train, task.label)
    labels = f" ({other:,} with another label)" if other else ""
    texts = [f"{repeated:,} rows of train repeat an earlier one{labels}"] if repeated else []
    pairs = (("test", "train"), ("test", "validation"), ("validation", "train"))
    texts += [_shared_text(rows, *pair) for pair in pairs if {*pair} <= rows.keys()]
    return "; ".join(filter(None, texts)) or "none"


def _shared_text(rows: Mapping[str, Sequence[bytes]], name: str, other: str) -> str:
    """How many rows of a split are in another one too; empty if none is.

    Raises:
        InputError: If both hold the same rows.
    """
    if Counter(rows[name]) == Counter(rows[other]):
        raise InputError(
            f"`task.{name}` must hold other rows than `task.{other}`, but both hold the same {len(rows[name]):,}; "
            "name parts that share none, such as `rows.csv:train[:80%]` and `rows.csv:train[80%:]`."
        )
    known, count = {*rows[other]}, len(rows[name])
    shared = sum(digest in known for digest in rows[name])
    which = "all rows" if shared == count else f"{shared:,} of {count:,} rows"
    return f"{which} of {name} are in {other} too: what is measured on them looks better than it is" if shared else ""


def _contradictions(digests: Sequence[bytes], examples: Dataset, label: str | None) -> int:
    """Rows whose inputs had another label before."""
    if label is None or label not in examples.column_names:
        return 0
    return len({*zip(digests, map(str, examples[label][:]), strict=True)}) - len({*digests})


def _digests(examples: Dataset, columns: tuple[str, ...]) -> list[bytes]:
    """What identifies the inputs of each row; nothing where columns are not known, or there are too many images."""
    if not columns or (_has_images(examples, columns) and len(examples) > CHECKED_IMAGES):
        return []
    return [
        hashlib.blake2b(b"\0".join(map(_content, row)), digest_size=DIGEST_BYTES).digest()
        for row in _inputs(examples, columns)
    ]


def _content(value: Any) -> bytes:
    if not isinstance(value, dict):
        return repr(value).encode()
    return bytes(value["bytes"]) if value.get("bytes") else Path(value["path"]).read_bytes()


def _inputs(examples: Dataset, columns: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Yields the inputs of each row; images as stored."""
    for column in columns:
        examples = undecoded(examples, column) if _has_images(examples, (column,)) else examples
    for batch in examples.select_columns([*columns]).iter(ROWS) if columns else ():
        yield from zip(*(batch[column] for column in columns), strict=True)


def _has_images(examples: Dataset, columns: tuple[str, ...]) -> bool:
    from datasets import Image

    return any(isinstance(examples.features[column], Image) for column in columns)

"""Lengths: tokens of the examples of a data set, and the length of inputs to propose for them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.tasks.columns import LANGUAGE_MODELING, TaskColumns
from nas.tasks.types.question_answering import STRIDE_SHARE

if TYPE_CHECKING:
    from datasets import Dataset

PERCENTILE = 95
MULTIPLE = 8
"""Lengths are multiples of it."""
SAMPLED_ROWS = 1000
SAMPLED_CHARACTERS = 2_000_000
LONGEST_BLOCK = 512
FEWEST_BLOCKS = 32
"""Blocks of a language model that the training data should fill at least."""


@dataclass(frozen=True)
class ProposedLength:
    """A length of inputs.

    Attributes:
        tokens: The length.
        reason: Why, in a few words.
        examples: Training examples of that length, about.
    """

    tokens: int
    reason: str
    examples: int


def propose_length(
    task: str, columns: TaskColumns, dataset: Dataset, tokenizer: Any, limit: int | None
) -> ProposedLength:
    """The length that 95 % of the examples have at most, or that of a language model's blocks.

    Args:
        task: Name of the task; it reads or writes text.
        columns: Columns of the task.
        dataset: The training data; a sample of it is tokenized.
        tokenizer: The model's.
        limit: Positions of the model; None if it sets no limit.
    """
    rows = list(_sampled_rows(dataset, _text_columns(task, columns)))
    lengths = np.array([_example_length(task, row, tokenizer) for row in rows] or [0])
    if task in LANGUAGE_MODELING:
        return _block_length(int(lengths.mean() * len(dataset)), limit)
    usual = int(np.ceil(np.percentile(lengths, PERCENTILE)))
    wanted = usual
    if task == "question-answering":
        longest = max(len(tokenizer(question)["input_ids"]) for question, _ in rows)
        wanted = max(usual, math.ceil((longest + MULTIPLE) / (1 - STRIDE_SHARE)))
    tokens = math.ceil(wanted / MULTIPLE) * MULTIPLE
    reason = f"{PERCENTILE} % of {len(lengths):,} examples have at most {usual:,} tokens"
    if limit is not None and tokens > limit:
        return ProposedLength(limit, f"the model's positions; {reason}", len(dataset))
    return ProposedLength(tokens, reason, len(dataset))


def _block_length(tokens: int, limit: int | None) -> ProposedLength:
    """The longest power of two that leaves enough blocks."""
    length = MULTIPLE
    while 2 * length <= min(limit or LONGEST_BLOCK, LONGEST_BLOCK) and tokens // (2 * length) >= FEWEST_BLOCKS:
        length *= 2
    blocks = tokens // length
    return ProposedLength(length, f"blocks; the training data has about {blocks:,} of them", blocks)


def _example_length(task: str, row: tuple[Any, ...], tokenizer: Any) -> int:
    """Tokens of one example; of a text that is written from another, of the longer one."""
    if task == "text2text-generation":
        return max(len(tokenizer(text)["input_ids"]) for text in row)
    split = {"is_split_into_words": True} if task == "token-classification" else {}
    return len(tokenizer(*row, verbose=False, **split)["input_ids"])


def _sampled_rows(dataset: Dataset, names: list[str]) -> Iterator[tuple[Any, ...]]:
    """Texts of evenly spaced rows that have them all."""
    texts, characters = dataset.select_columns(names), 0
    for index in range(0, len(texts), max(1, len(texts) // SAMPLED_ROWS)):
        row = tuple(texts[index][name] for name in names)
        if None not in row:
            characters += sum(map(len, row))
            yield row
        if characters > SAMPLED_CHARACTERS:
            return


def _text_columns(task: str, columns: TaskColumns) -> list[str]:
    """The columns that are tokenized: the texts, and those that a model writes."""
    text = columns.get("text", [])
    written = [columns["label"]] if task in ("text2text-generation", "automatic-speech-recognition") else []
    return [*([text] if isinstance(text, str) else text), *written]

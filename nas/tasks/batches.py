"""Rows and batches: their types, the names of labels, and the index that losses ignore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


Row = dict[str, Any]
Batch = Mapping[str, "torch.Tensor"]
LABEL_NAMES = ("labels", "start_positions", "end_positions", "scores")
"""Entries of a batch that hold labels; a model needs them only to compute its own loss."""
PARENT = "parent_"
"""Start of the names of entries of a batch that only the parent reads, where a smaller vocabulary has other tokens."""
PARENT_TOKENS = f"{PARENT}tokens"
"""Column with the texts of an example in the parent's own tokens."""
BYTES = "bytes"
"""Column with the bytes of the text that a language model predicts."""
LENGTHS = "lengths"
"""Column with the numbers of tokens of the texts of an example, which stand one after another in ``input_ids``."""
ROW_INDEX = "row"
"""Column of a training set with the number of each example."""
IGNORE_INDEX = -100
"""Label of tokens that losses and metrics ignore, as in PyTorch and Hugging Face."""


def row_numbers(rows: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of rows that are computed when they are read, if a training has numbered them."""
    return {ROW_INDEX: rows[ROW_INDEX]} if ROW_INDEX in rows else {}


def model_inputs(batch: Batch) -> dict[str, torch.Tensor]:
    """Returns the batch without its labels."""
    return {name: tensor for name, tensor in batch.items() if name not in LABEL_NAMES and not name.startswith(PARENT)}


def count_labels(batch: Batch, *, shifted: bool) -> int:
    """Returns the number of labels over which a model's loss on a batch is a mean: of its tokens or its examples.

    Args:
        batch: Model inputs with labels.
        shifted: Whether the loss compares the output at a token with the label of the next one.
    """
    labels = batch.get("labels")
    if labels is None or labels.ndim < 2 or labels.is_floating_point():
        return len(next(iter(batch.values())))
    return int((labels[:, 1:] if shifted else labels).ne(IGNORE_INDEX).sum())

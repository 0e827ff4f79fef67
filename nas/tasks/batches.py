"""What a row and a batch are: labels, ignored index, model inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


Row = dict[str, Any]
Batch = Mapping[str, "torch.Tensor"]
LABEL_NAMES = ("labels", "start_positions", "end_positions")
"""What of a batch a model only needs for its own loss."""
IGNORE_INDEX = -100
"""The label of what is not scored, as everywhere in Hugging Face."""


def model_inputs(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch without its labels."""
    return {name: tensor for name, tensor in batch.items() if name not in LABEL_NAMES}

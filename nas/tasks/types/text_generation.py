"""Text generation: a causal language model predicts the next token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nas.tasks.batches import Batch, Row
from nas.tasks.types.language_modeling import LanguageModeling

if TYPE_CHECKING:
    from nas.tasks.losses import LogitsAndLabels


class TextGeneration(LanguageModeling):
    """Every token of a block except the first is predicted from the tokens before it."""

    def collate(self, rows: list[Row]) -> Batch:
        """Stacks blocks of one length; the model itself shifts the labels."""
        import torch

        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids}

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Returns the logits (examples, tokens - 1, vocabulary) and the labels of the next tokens."""
        return [(outputs.logits[:, :-1], batch["labels"][:, 1:])]

"""Text generation: a causal language model predicts the next token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nas.tasks.batches import IGNORE_INDEX, Batch, Row
from nas.tasks.types.language_modeling import CONTEXT, LanguageModeling

if TYPE_CHECKING:
    from nas.tasks.losses import LogitsAndLabels


class TextGeneration(LanguageModeling):
    """Every token of a block except the first is predicted from the tokens before it.

    Held-out blocks may overlap (``task.stride``); then only the tokens after the overlap are scored.
    """

    strides = True

    def collate(self, rows: list[Row]) -> Batch:
        """Pads blocks to the longest one; the model itself shifts the labels, and no token sees those after it."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        blocks = [torch.tensor(row["input_ids"]) for row in rows]
        ids, labels = (pad_sequence(blocks, True, value) for value in (self.processor.pad_token_id, IGNORE_INDEX))
        for row, scored in zip(rows, labels, strict=True):
            scored[: row.get(CONTEXT, 0)] = IGNORE_INDEX
        return {"input_ids": ids, "labels": labels}

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Returns the logits (examples, tokens - 1, vocabulary) and the labels of the next tokens."""
        return [(outputs.logits[:, :-1], batch["labels"][:, 1:])]

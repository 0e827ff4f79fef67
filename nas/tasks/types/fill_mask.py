"""Fill-mask: a masked language model predicts the masked tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nas.tasks.batches import Batch, Row
from nas.tasks.types.base import TaskInputs
from nas.tasks.types.language_modeling import LanguageModeling
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from nas.tasks.losses import LogitsAndLabels


class FillMask(LanguageModeling):
    """Masks 15 % of the tokens (Devlin et al. 2019): different ones in every epoch, fixed ones for evaluation."""

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        if self.processor.mask_token is None:
            raise InputError(
                f"fill-mask needs a tokenizer with a mask token, but the tokenizer of `{inputs.model}` has none; "
                "choose a masked language model, or the task text-generation."
            )
        self.seed = inputs.seed
        self.mask_tokens = _masking_collator(self.processor, None)

    def collate(self, rows: list[Row]) -> Batch:
        """Masks random tokens of the blocks; the labels of all other tokens are ignored."""
        return dict(self.mask_tokens(_ids(rows)))

    def evaluation_collator(self) -> Callable[[list[Row]], Batch]:
        """Returns a collator whose masks depend only on the seed."""
        mask = _masking_collator(self.processor, self.seed)
        return lambda rows: dict(mask(_ids(rows)))

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Returns the logits (examples, tokens, vocabulary) and labels; only masked tokens have a label."""
        return [(outputs.logits, batch["labels"])]


def _ids(rows: list[Row]) -> list[Row]:
    return [{"input_ids": row["input_ids"]} for row in rows]


def _masking_collator(tokenizer: Any, seed: int | None) -> Callable[[list[Row]], Any]:
    """Returns the collator of transformers; without a seed it uses torch's generator, which checkpoints restore."""
    from transformers import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(tokenizer, seed=seed)

"""Fill-mask: a masked language model that restores the tokens that were hidden."""

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
    """15 % of the tokens are masked (Devlin et al. 2019), anew in every epoch; those of evaluation sets are fixed."""

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        if self.processor.mask_token is None:
            raise InputError(
                f"fill-mask needs a tokenizer with a mask token, but that of `{inputs.model}` has none; choose "
                "a masked language model, or the task text-generation."
            )
        self.seed = inputs.seed
        self.mask_tokens = _masking_collator(self.processor, None)

    def collate(self, rows: list[Row]) -> Batch:
        """Blocks with tokens masked at random; the labels of all others are ignored."""
        return dict(self.mask_tokens(rows))

    def evaluation_collator(self) -> Callable[[list[Row]], Batch]:
        """Masks that the seed alone decides."""
        mask = _masking_collator(self.processor, self.seed)
        return lambda rows: dict(mask(rows))

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """The scores of each token (examples, tokens, words); only masked ones have a label."""
        return [(outputs.logits, batch["labels"])]


def _masking_collator(tokenizer: Any, seed: int | None) -> Callable[[list[Row]], Any]:
    """The collator of transformers; without a seed it draws from torch, whose state a resumed training restores."""
    from transformers import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(tokenizer, seed=seed)

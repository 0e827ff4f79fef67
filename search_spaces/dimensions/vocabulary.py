"""Vocabulary: how many pieces of the tokenizer are kept, those that the training texts use most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import FULL, Facts, Reduced, without_useless
from search_spaces.errors import InputError
from search_spaces.proportions import LARGE_TABLE, embedding_share

if TYPE_CHECKING:
    from search_spaces.blueprint import LayerDraft
    from search_spaces.family import Family
    from search_spaces.layout import Layout
    from search_spaces.tasks import Task

IMPROVES = ("num_parameters", "size_mb")
"""Costs that fewer pieces improve; texts become longer, so latency does not fall."""

FRACTIONS = (4, 2)
"""Proposed parts of the parent's pieces: a quarter, half."""

SMALLEST_PROPOSED = 1000
"""Fewest pieces that are proposed."""


class VocabularySize(Reduced):
    """The number of pieces that are kept; special tokens and the alphabet always stay."""

    def apply(self, value: Any, draft: LayerDraft) -> None:
        """Keeps so many rows of the table of token embeddings."""
        if value != FULL:
            draft.keep_rows(int(value))

    def useful(self, values: Sequence[Any], facts: Facts) -> tuple[list[Any], list[str]]:
        """Fewer pieces only where the recipe names a size."""
        return without_useless([self.parse(value) for value in values], FULL, _useless_reason(facts))

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """A quarter and half of the pieces, where the table is a large part of the model."""
        share = embedding_share(layout)
        few = f"the embeddings are {share:.0%} of the weights" if share < LARGE_TABLE else ""
        all_pieces, fewest = layout.sizes.vocab_size, max(SMALLEST_PROPOSED, facts.fewest_pieces)
        pieces = [all_pieces // part for part in FRACTIONS if all_pieces // part >= fewest]
        if not few and not pieces:
            few = f"of its {all_pieces} pieces {fewest} must stay"
        return _useless_reason(facts) or few or [*pieces, FULL]

    def varies_in(self, family: Family) -> bool:
        """Whether the family's table says which weights have an entry for each piece."""
        return family.has_vocabulary

    def fixed_reason(self, family: Family) -> str:
        """Why it does not."""
        return "" if family.embedding else family.embedding_fixed_reason

    def fixed_in(self, task: Task) -> str:
        """Why it may not vary in a task whose model reads no text."""
        return "" if task.reads_text else "the model reads no text"

    def check_in(self, layout: Layout, value: Any) -> None:
        """Raises InputError unless the parent has so many pieces, in a table that can be shortened."""
        text = self.parse(value)
        if text == FULL:
            return
        if not layout.family.has_vocabulary:
            raise InputError(
                f"the vocabulary of `{layout.family.model_type}` must be full, but got `{self.name}` {text}."
            )
        if int(text) > layout.sizes.vocab_size:
            raise InputError(
                f"`{self.name}` must be at most the {layout.sizes.vocab_size} pieces of the parent, but got {text}; "
                "write `full` to keep them all."
            )


def _useless_reason(facts: Facts) -> str:
    """Why fewer pieces are not worthwhile; empty if they are."""
    if not {*IMPROVES} & facts.value_names:
        return f"it only reduces {' and '.join(IMPROVES)}, and no objective or constraint names one of them"
    return ""


VOCABULARY = VocabularySize(
    "vocabulary",
    label="vocabulary",
    meaning="Pieces of the tokenizer that are kept, those that the training texts use most: `full` or a number.",
    scope="subnetwork",
    unit="pieces",
)

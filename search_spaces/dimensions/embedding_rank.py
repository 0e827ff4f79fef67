"""Rank of the table of token embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import FULL_RANK, Facts, Rank
from search_spaces.errors import InputError
from search_spaces.proportions import LARGE_TABLE, embedding_share

if TYPE_CHECKING:
    from search_spaces.blueprint import LayerDraft
    from search_spaces.family import Family
    from search_spaces.layout import Layout

IMPROVES = ("num_parameters", "size_mb")
"""Costs that a low-rank table can improve: looking a row up takes no time, the product after it does."""


class EmbeddingRank(Rank):
    """The rank of the table, in percent of vocabulary * channels / (vocabulary + channels)."""

    def apply(self, value: Any, draft: LayerDraft) -> None:
        """Makes the table low-rank."""
        if value != FULL_RANK:
            draft.factorize_embedding(value)

    def useful(self, values: Sequence[Any], facts: Facts) -> tuple[list[Any], list[str]]:
        """Low ranks only where the table is not shared and the recipe names a size."""
        kept, reasons = super().useful(values, facts)
        low = [percent for percent in kept if percent != FULL_RANK]
        why = _useless_reason(facts)
        if not why or not low:
            return kept, reasons
        return [FULL_RANK], [*reasons, f"{', '.join(f'{n / 100:g}' for n in low)} dropped: {why}"]

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """A quarter and half of break-even, where the table is a large part of the model."""
        share = embedding_share(layout)
        few = f"the embeddings are {share:.0%} of the weights" if share < LARGE_TABLE else ""
        return _useless_reason(facts) or few or [0.25, 0.5, "full"]

    def varies_in(self, family: Family) -> bool:
        """Whether the family has a table that can be factorized."""
        return bool(family.embedding)

    def fixed_reason(self, family: Family) -> str:
        """Why the table cannot be factorized."""
        return family.embedding_fixed_reason

    def check_in(self, layout: Layout, value: Any) -> None:
        """Raises InputError for a low rank where the table cannot be factorized."""
        if value != FULL_RANK and not layout.family.embedding:
            raise InputError(
                f"the embeddings of `{layout.family.model_type}` cannot be factorized, but got `{self.name}` {value}."
            )

    def picture_row(self, value: Any) -> tuple[str, str]:
        """The row of the embeddings."""
        return "embedding", f"rank {value} %"


def _useless_reason(facts: Facts) -> str:
    """Why low ranks are impossible or not worthwhile; empty if they are."""
    if facts.ties_embedding:
        return "the output head shares the table of token embeddings"
    if not {*IMPROVES} & facts.value_names:
        return f"it only reduces {' and '.join(IMPROVES)}, and no objective or constraint names one of them"
    return ""


EMBEDDING_RANK = EmbeddingRank(
    "embedding_rank",
    label="embedding rank %",
    meaning="Rank of the table of token embeddings: `full`, or a fraction of the break-even rank.",
    scope="subnetwork",
)

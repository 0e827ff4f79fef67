"""Rank of the table of token embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import FULL_RANK, Facts, Rank
from search_spaces.errors import InputError

if TYPE_CHECKING:
    from search_spaces.family import Family
    from search_spaces.layout import Layout

IMPROVES = ("num_parameters", "size_mb")
"""Costs that a low-rank table can improve: looking a row up takes no time, the product after it does."""


class EmbeddingRank(Rank):
    """The rank of the table, in percent of vocabulary * channels / (vocabulary + channels)."""

    def useful(self, values: Sequence[Any], facts: Facts) -> tuple[list[Any], list[str]]:
        """Low ranks only where the table is not shared and a size is asked for."""
        kept, reasons = super().useful(values, facts)
        low = [percent for percent in kept if percent != FULL_RANK]
        why = ""
        if facts.ties_embedding:
            why = "the output head shares the table of token embeddings"
        elif not {*IMPROVES} & facts.value_names:
            why = f"it only reduces {' and '.join(IMPROVES)}, and no objective or constraint names one of them"
        if not why or not low:
            return kept, reasons
        return [FULL_RANK], [*reasons, f"{', '.join(f'{n / 100:g}' for n in low)} dropped: {why}"]

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


EMBEDDING_RANK = EmbeddingRank(
    "embedding_rank",
    label="embedding rank %",
    meaning="Rank of the table of token embeddings: `full`, or a fraction of the break-even rank.",
    scope="subnetwork",
)

"""Bits of the table of token embeddings: integers with scales, or codes of a product quantization."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import Category, Facts, without_useless
from search_spaces.errors import InputError
from search_spaces.module_kinds import CompressedTable
from search_spaces.proportions import LARGE_TABLE, embedding_share

if TYPE_CHECKING:
    from search_spaces.blueprint import LayerDraft
    from search_spaces.family import Family
    from search_spaces.layout import Layout

FULL = "full"
"""The table in the parent's dtype."""

INTEGERS = ("4", "8", "16")
"""Bits of a value, fewest first; 16 is float16."""

FIRST_PQ = 100
"""Integers above stand for product quantizations in arrays."""

CENTROIDS = 256
"""Rows of a codebook: a code is one byte."""

IMPROVES = "size_mb"
"""The cost that a compressed table can improve: looking a row up is no product."""


class EmbeddingBits(Category):
    """How the rows of the table of token embeddings are stored.

    ``8`` and ``4`` are integers with one scale for a group of channels. ``pq:N`` is product quantization (Jégou et al.
    2011, doi 10.1109/TPAMI.2010.57) in N bytes a row: each of N parts of a row is the nearest of 256 vectors.
    """

    choice_type = int | str

    def parse(self, value: Any) -> str:
        """The text of a value.

        Raises:
            InputError: If it is none.
        """
        text = str(value)
        if text not in (FULL, *INTEGERS) and not re.fullmatch(r"pq:[1-9]\d{0,4}", text):
            raise InputError(
                f"`{self.name}` must be `full`, 16, 8, 4 or `pq:N` with N bytes a row, but got `{text}`; write, for "
                "example, 8 or `pq:48`."
            )
        return text

    def apply(self, value: Any, draft: LayerDraft) -> None:
        """Compresses the table."""
        if value != FULL:
            draft.compress_embedding(_kind(value, draft.layout))

    def encode(self, value: Any) -> int:
        """The bits of an integer, 0 for the full table, the bytes of a product quantization from `FIRST_PQ` on."""
        return FIRST_PQ + _bytes(value) if _bytes(value) else 0 if value == FULL else int(value)

    def decode(self, code: int) -> str:
        """The text of an integer from `encode`."""
        return f"pq:{code - FIRST_PQ}" if code > FIRST_PQ else str(code) if code else FULL

    def sort(self, values: Sequence[Any]) -> tuple[str, ...]:
        """Distinct values, the smallest table first."""
        order = (*INTEGERS, FULL)
        return tuple(
            sorted(
                {self.parse(value) for value in values},
                key=lambda text: (0, _bytes(text)) if _bytes(text) else (1, order.index(text)),
            )
        )

    def useful(self, values: Sequence[Any], facts: Facts) -> tuple[list[Any], list[str]]:
        """Compressed tables only where the table is not shared and the recipe names the size of the file."""
        return without_useless([self.parse(value) for value in values], FULL, _useless_reason(facts))

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """Integers, where the table is a large part of the model."""
        share = embedding_share(layout)
        few = f"the embeddings are {share:.0%} of the weights" if share < LARGE_TABLE else ""
        return _useless_reason(facts) or few or [4, 8, FULL]

    def varies_in(self, family: Family) -> bool:
        """Whether the family has a table that can be replaced."""
        return bool(family.embedding)

    def fixed_reason(self, family: Family) -> str:
        """Why the table cannot be replaced."""
        return family.embedding_fixed_reason

    def check_in(self, layout: Layout, value: Any) -> None:
        """Raises InputError for a compressed table where it cannot be replaced, or is not divided by its codes."""
        text = self.parse(value)
        if text != FULL and not layout.family.embedding:
            raise InputError(
                f"the embeddings of `{layout.family.model_type}` cannot be compressed, but got `{self.name}` {text}."
            )
        channels = layout.shapes.embedding_size
        if _bytes(text) and channels % _bytes(text):
            raise InputError(
                f"`{self.name}` `pq:N` must divide the {channels} channels of the table into N equal parts, but got "
                f"`{text}`; take a divisor of {channels}."
            )

    def picture_row(self, value: Any) -> tuple[str, str]:
        """The row of the table."""
        return "table", value if _bytes(value) else f"{value} bits"


def _bytes(text: str) -> int:
    """Bytes a row of a product quantization; 0 for any other value."""
    return int(text.removeprefix("pq:")) if text.startswith("pq:") else 0


def _kind(text: str, layout: Layout) -> CompressedTable:
    """The kind of module of a compressed table."""
    if not _bytes(text):
        return CompressedTable(int(text))
    fewer = max(1, int(layout.sizes.vocab_size) // 2)  # as many vectors as rows would save nothing
    return CompressedTable(0, layout.shapes.embedding_size // _bytes(text), min(CENTROIDS, fewer))


def _useless_reason(facts: Facts) -> str:
    """Why a compressed table is impossible or not worthwhile; empty if it is."""
    if facts.ties_embedding:
        return "the output head shares the table of token embeddings"
    if IMPROVES not in facts.value_names:
        return f"it only reduces {IMPROVES}, which is neither an objective nor a constraint"
    return ""


EMBEDDING_BITS = EmbeddingBits(
    "embedding_bits",
    label="embedding bits",
    meaning="How the table of token embeddings is stored: `full`, 16, 8, 4, or `pq:N`, N bytes a row.",
    scope="subnetwork",
    neutral=FULL,
)

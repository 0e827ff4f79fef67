"""Blocks: texts as tokens that are joined and cut, each block with the bytes of its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tokens:
    """Tokens of texts that stand one after another.

    Attributes:
        ids: Of the pieces (tokens,).
        starts: The byte of the texts at which each token starts (tokens,); a token that stands for no text, such as a
            special one, starts and ends where the one before it ends.
        ends: The byte at which it ends (tokens,).
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, tokenizer: Any, texts: Sequence[str]) -> Tokens:
        """Tokenizes texts; only fast tokenizers know bytes, those of others are 0."""
        encoded = tokenizer(list(texts), verbose=False, return_offsets_mapping=tokenizer.is_fast)
        starts, ends, first = [np.zeros(0, int)], [np.zeros(0, int)], 0
        for text, offsets in zip(texts, encoded["offset_mapping"] if tokenizer.is_fast else (), strict=False):
            byte_of = first + np.cumsum([0, *(len(character.encode()) for character in text)])
            spans = byte_of[np.array(offsets, dtype=int).reshape(-1, 2)]
            end = np.maximum.accumulate(spans[:, 1])
            stands_for_text = spans[:, 1] > spans[:, 0]
            starts.append(np.where(stands_for_text, spans[:, 0], np.concatenate([[first], end])[: len(end)]))
            ends.append(end)
            first = int(byte_of[-1])
        ids = np.concatenate([np.zeros(0, int), *(np.array(row, dtype=int) for row in encoded["input_ids"])])
        spans = [np.concatenate(each) if tokenizer.is_fast else np.zeros(len(ids), int) for each in (starts, ends)]
        return cls(ids, np.maximum.accumulate(spans[0]), spans[1])

    def blocks(self, length: int, stride: int | None = None) -> list[slice]:
        """Full blocks of so many tokens, ``stride`` apart, by default one after another; the rest is left out."""
        return [slice(k, k + length) for k in range(0, len(self.ids) - length + 1, stride or length)]

    def same_text(self, other: Tokens, blocks: Sequence[slice], longest: int | None) -> list[slice]:
        """The tokens that stand for the texts of another tokenizer's blocks, of each at most so many."""
        cuts = [block.start for block in blocks] + [block.stop for block in blocks[-1:]]
        inner = np.searchsorted(self.starts, [other.starts[cut] for cut in cuts if 0 < cut < len(other.ids)])
        bounds = [0, *inner.tolist(), len(self.ids)][: len(blocks) + 1]
        most = longest or len(self.ids)
        return [slice(start, min(max(stop, start + 1), start + most)) for start, stop in pairwise(bounds)]

    def bytes_after(self, context: int, block: slice) -> int:
        """Bytes of the texts of a block after so many tokens, at least its first one, which no token predicts."""
        ends = self.ends[block]
        return int(ends[-1] - ends[context - 1]) if len(ends) else 0

"""Vocabulary: the pieces of a tokenizer in the order in which they are kept when there are fewer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas.runs.files import read_json, write_json
from nas.tasks.trimmed_tokenizer import parents_of, pieces_that_stay, specification
from search_spaces import InputError
from search_spaces.dimension import FULL

VOCABULARY_FILE = "vocabulary.json"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The pieces of a tokenizer, most important first; a smaller vocabulary is a prefix, so that they are nested.

    Attributes:
        order: Ids of the pieces in the full vocabulary.
        stay: How many of them are in every vocabulary: special tokens and the alphabet.
    """

    order: np.ndarray
    stay: int

    @classmethod
    def by_use(cls, tokenizer: Any, counts: np.ndarray) -> Vocabulary:
        """The pieces of a tokenizer by how often texts use them.

        A piece that others are merged from counts as used with each of them, so it is kept as long as they are.

        Args:
            tokenizer: A fast tokenizer.
            counts: Uses of each id in some texts.
        """
        spec = specification(tokenizer)
        pieces, stay = tokenizer.get_vocab(), pieces_that_stay(spec)
        used = {piece: float(counts[i]) if i < len(counts) else 0.0 for piece, i in pieces.items()}
        parents = parents_of(spec)
        for piece in sorted(parents, key=len, reverse=True):
            for parent in parents[piece]:
                used[parent] += used[piece]
        ranked = sorted(pieces, key=lambda piece: (piece not in stay, -used[piece], len(piece), pieces[piece]))
        return cls(np.array([pieces[piece] for piece in ranked]), sum(piece in stay for piece in pieces))

    def kept(self, size: str) -> np.ndarray:
        """Ids in the full vocabulary of the pieces of a smaller one, ascending: its id k is the k-th of them.

        Raises:
            InputError: If it has no room for the pieces that always stay, or is larger than the full one.
        """
        pieces = len(self.order) if size == FULL else int(size)
        if not self.stay <= pieces <= len(self.order):
            raise InputError(
                f"`vocabulary` must lie between the {self.stay} pieces that always stay (special tokens and the "
                f"alphabet) and all {len(self.order)}, but got {size}; choose more pieces, or `full`."
            )
        return np.sort(self.order[:pieces])

    def token_ids(self, config: Mapping[str, Any], size: str) -> dict[str, Any]:
        """Fields of a config that hold ids of tokens -> their values in a smaller vocabulary."""
        fields = {name: value for name, value in config.items() if name.endswith("_token_id")}
        if size == FULL:
            return fields
        kept = self.kept(size)
        return {name: _renumbered(kept, value) for name, value in fields.items() if isinstance(value, int | list)}

    def save(self, folder: Path) -> None:
        """Writes `VOCABULARY_FILE`."""
        write_json(folder / VOCABULARY_FILE, {"stay": self.stay, "order": self.order.tolist()})

    @classmethod
    def load(cls, folder: Path) -> Vocabulary | None:
        """Reads the file in a folder; None if there is none."""
        file = folder / VOCABULARY_FILE
        return read_json(file, parse=cls._parse) if file.exists() else None

    @classmethod
    def _parse(cls, data: Mapping[str, Any]) -> Vocabulary:
        return cls(np.array(data["order"], dtype=np.int64), int(data["stay"]))


def _renumbered(kept: np.ndarray, value: int | list[int]) -> int | list[int]:
    """Ids in a smaller vocabulary; those that it lacks stay."""
    if isinstance(value, list):
        return [int(np.searchsorted(kept, one)) if one in kept else one for one in value]
    return int(np.searchsorted(kept, value)) if value in kept else value

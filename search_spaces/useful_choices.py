"""Pruning: choices of a recipe that cannot pay, left out of the space before anything is searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.dimensions.attention import FULL, AttentionPattern
from search_spaces.dimensions.bits import WHOLE, checked
from search_spaces.dimensions.ranks import DENSE
from search_spaces.errors import InputError
from search_spaces.subnet import RANKS


def pruned(
    choices: Mapping[str, Any], tokens: int, refused: Mapping[str, str] | None = None, whole_embedding: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """The choices of a recipe as a `SearchSpace` takes them, and one line for each dimension that lost some.

    Ranks are fractions of the break-even rank in a recipe, percent of it in a space; a recipe calls a linear layer
    that stays one matrix ``full``.

    Args:
        choices: Scope and lists of choices, as in the recipe; None where a dimension stays as it is.
        tokens: Of one sample of the workload, in the stack that has more.
        refused: Kind of bits -> why it cannot run or pay there.
        whole_embedding: Why the table of token embeddings must stay whole or cannot pay otherwise.

    Raises:
        InputError: If a rank is under a percent of break-even, or an attention pattern or kind of bits is none.
    """
    found, reasons = dict(choices), list[str]()
    for rank in (*RANKS, "embedding_rank"):
        if choices.get(rank) is not None:
            found[rank], left_out = _paying_ranks(rank, choices[rank])
            reasons += [f"{rank} {left_out}"] * bool(left_out)
    if whole_embedding and (low := [n for n in found.get("embedding_rank") or () if n != DENSE]):
        found["embedding_rank"] = [DENSE]
        reasons += [f"embedding_rank {', '.join(f'{n / 100:g}' for n in low)} left out: {whole_embedding}"]
    if choices.get("attention") is not None:
        found["attention"], left_out = _paying_patterns(choices["attention"], tokens)
        reasons += [f"attention {left_out}"] * bool(left_out)
    if choices.get("bits") is not None:
        given = [checked(kind) for kind in choices["bits"]]
        without = {kind: why for kind, why in (refused or {}).items() if kind in given}
        found["bits"] = [kind for kind in given if kind not in without] or [WHOLE] * bool(given)
        reasons += [f"bits {kind} left out: {why}" for kind, why in without.items()]
    return found, reasons


def _paying_ranks(rank: str, values: Sequence[Any]) -> tuple[list[int], str]:
    """Ranks below break-even, in percent, and why others are left out."""
    if wrong := [value for value in values if value != FULL and value < 0.01]:
        raise InputError(f"`space.{rank}` must be `{FULL}` or at least 0.01 of break-even, but got {wrong}.")
    paying = [value for value in values if value == FULL or value < 1]
    left_out = ", ".join(f"{value:g}" for value in values if value not in paying)
    why = "left out: from break-even on, two factors cost as much as the one matrix"
    percent = [DENSE if value == FULL else int(round(100 * value, 6)) for value in paying or [FULL]]
    return percent, f"{left_out} {why}" if left_out else ""


def _paying_patterns(values: Sequence[str], tokens: int) -> tuple[list[str], str]:
    """Attention patterns that are faster than full attention of so many tokens, and why others are left out."""
    parsed = {text: AttentionPattern.parse(text) for text in values}
    late = {text: pattern.pays_from for text, pattern in parsed.items() if pattern and pattern.pays_from > tokens}
    left_out = ", ".join(f"{text} (pays from {pays_from} tokens)" for text, pays_from in late.items())
    why = f"left out: slower than full attention at {tokens} tokens"
    return [text for text in values if text not in late] or [FULL] * bool(values), f"{left_out} {why}" if late else ""

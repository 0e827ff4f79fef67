"""Pruning: choices of a recipe that cannot pay, left out of the space before anything is searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.dimensions.attention import FULL, AttentionPattern
from search_spaces.dimensions.bits import FULL_PRECISION, check_bits
from search_spaces.dimensions.ranks import FULL_RANK
from search_spaces.errors import InputError
from search_spaces.subnet import RANK_FIELDS


def useful_choices(
    choices: Mapping[str, Any],
    tokens: int,
    unsupported_bits: Mapping[str, str] | None = None,
    embedding_fixed_reason: str = "",
) -> tuple[dict[str, Any], list[str]]:
    """The choices of a recipe as a `SearchSpace` takes them, and one line for each dimension that lost some.

    Ranks are fractions of the break-even rank in a recipe, percent of it in a space; a recipe calls a linear layer
    that stays one matrix ``full``.

    Args:
        choices: Scope and lists of choices, as in the recipe; None where a dimension stays as it is.
        tokens: Of one sample of the workload, in the stack that has more.
        unsupported_bits: Kind of bits -> why it cannot run or pay there.
        embedding_fixed_reason: Why the table of token embeddings must stay whole or cannot pay otherwise.

    Raises:
        InputError: If a rank is under a percent of break-even, or an attention pattern or kind of bits is none.
    """
    useful, reasons = dict(choices), list[str]()
    for rank in (*RANK_FIELDS, "embedding_rank"):
        if choices.get(rank) is not None:
            useful[rank], dropped = _useful_ranks(rank, choices[rank])
            reasons += [f"{rank} {dropped}"] * bool(dropped)
    if embedding_fixed_reason and (low := [n for n in useful.get("embedding_rank") or () if n != FULL_RANK]):
        useful["embedding_rank"] = [FULL_RANK]
        reasons += [f"embedding_rank {', '.join(f'{n / 100:g}' for n in low)} left out: {embedding_fixed_reason}"]
    if choices.get("attention") is not None:
        useful["attention"], dropped = _useful_patterns(choices["attention"], tokens)
        reasons += [f"attention {dropped}"] * bool(dropped)
    if choices.get("bits") is not None:
        given = [check_bits(kind) for kind in choices["bits"]]
        unsupported = {kind: why for kind, why in (unsupported_bits or {}).items() if kind in given}
        useful["bits"] = [kind for kind in given if kind not in unsupported] or [FULL_PRECISION] * bool(given)
        reasons += [f"bits {kind} left out: {why}" for kind, why in unsupported.items()]
    return useful, reasons


def _useful_ranks(rank: str, values: Sequence[Any]) -> tuple[list[int], str]:
    """Ranks below break-even, in percent, and why others are left out."""
    if wrong := [value for value in values if value != FULL and value < 0.01]:
        raise InputError(f"`space.{rank}` must be `{FULL}` or at least 0.01 of break-even, but got {wrong}.")
    useful = [value for value in values if value == FULL or value < 1]
    dropped = ", ".join(f"{value:g}" for value in values if value not in useful)
    why = "left out: from break-even on, two factors cost as much as the one matrix"
    percent = [FULL_RANK if value == FULL else int(round(100 * value, 6)) for value in useful or [FULL]]
    return percent, f"{dropped} {why}" if dropped else ""


def _useful_patterns(values: Sequence[str], tokens: int) -> tuple[list[str], str]:
    """Attention patterns that are faster than full attention of so many tokens, and why others are left out."""
    parsed = {text: AttentionPattern.parse(text) for text in values}
    late = {
        text: pattern.faster_from_tokens
        for text, pattern in parsed.items()
        if pattern and pattern.faster_from_tokens > tokens
    }
    dropped = ", ".join(f"{text} (pays from {faster_from_tokens} tokens)" for text, faster_from_tokens in late.items())
    why = f"left out: slower than full attention at {tokens} tokens"
    return [text for text in values if text not in late] or [FULL] * bool(values), f"{dropped} {why}" if late else ""

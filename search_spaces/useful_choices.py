"""Useful choices: drops those choices of a recipe that can improve no objective, before the search."""

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
    """The choices of a recipe as `SearchSpace` takes them, and one line for each dimension that lost some.

    A recipe gives ranks as fractions of the break-even rank, or ``full`` for one matrix; a space has them in percent.

    Args:
        choices: Scope and lists of choices, as in the recipe; None where a dimension is fixed.
        tokens: Tokens of one sample of the workload, in the stack with the longer sequence.
        unsupported_bits: Dtype -> why it cannot run, or is not worthwhile, on this workload.
        embedding_fixed_reason: Why low-rank token embeddings are impossible or not worthwhile; empty if they are.

    Raises:
        InputError: If a rank is under 1 % of break-even, or an attention pattern or dtype is unknown.
    """
    useful, reasons = dict(choices), list[str]()
    for rank in (*RANK_FIELDS, "embedding_rank"):
        if choices.get(rank) is not None:
            useful[rank], dropped = _useful_ranks(rank, choices[rank])
            reasons += [f"{rank} {dropped}"] * bool(dropped)
    if embedding_fixed_reason and (low := [n for n in useful.get("embedding_rank") or () if n != FULL_RANK]):
        useful["embedding_rank"] = [FULL_RANK]
        reasons += [f"embedding_rank {', '.join(f'{n / 100:g}' for n in low)} dropped: {embedding_fixed_reason}"]
    if choices.get("attention") is not None:
        useful["attention"], dropped = _useful_patterns(choices["attention"], tokens)
        reasons += [f"attention {dropped}"] * bool(dropped)
    if choices.get("bits") is not None:
        dtypes = [check_bits(dtype) for dtype in choices["bits"]]
        unsupported = {dtype: why for dtype, why in (unsupported_bits or {}).items() if dtype in dtypes}
        useful["bits"] = [dtype for dtype in dtypes if dtype not in unsupported] or [FULL_PRECISION] * bool(dtypes)
        reasons += [f"bits {dtype} dropped: {why}" for dtype, why in unsupported.items()]
    return useful, reasons


def _useful_ranks(rank: str, values: Sequence[Any]) -> tuple[list[int], str]:
    """Ranks below break-even, in percent, and why the others are dropped."""
    if wrong := [value for value in values if value != FULL and value < 0.01]:
        raise InputError(f"`space.{rank}` must be `{FULL}` or at least 0.01 of break-even, but got {wrong}.")
    useful = [value for value in values if value == FULL or value < 1]
    dropped = ", ".join(f"{value:g}" for value in values if value not in useful)
    why = "dropped: at this rank the two factors are no smaller than the full matrix"
    percent = [FULL_RANK if value == FULL else int(round(100 * value, 6)) for value in useful or [FULL]]
    return percent, f"{dropped} {why}" if dropped else ""


def _useful_patterns(values: Sequence[str], tokens: int) -> tuple[list[str], str]:
    """Attention patterns that are faster than full attention at this length, and why the others are dropped."""
    parsed = {text: AttentionPattern.parse(text) for text in values}
    limits = {text: pattern.faster_from_tokens if pattern else 0 for text, pattern in parsed.items()}
    useful = [text for text in values if limits[text] <= tokens]
    dropped = ", ".join(f"{text} (faster from {limit} tokens)" for text, limit in limits.items() if limit > tokens)
    why = f"dropped: slower than full attention at {tokens} tokens"
    return useful or [FULL] * bool(values), f"{dropped} {why}" if dropped else ""

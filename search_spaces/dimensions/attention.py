"""Attention patterns of a layer: which tokens attend to which, the cost, and from which length on one is faster."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import Category, Facts
from search_spaces.errors import InputError
from search_spaces.module_kinds import SparseAttention
from search_spaces.proportions import attention_score_share

if TYPE_CHECKING:
    from search_spaces.blueprint import LayerDraft
    from search_spaces.family import Family
    from search_spaces.layout import Layout

FULL = "full"
"""The attention of the stock layer: over all tokens, or over its own sliding window."""

SMALLEST_WINDOW = 32
"""Smallest proposed window."""
PROPOSED_FROM_SHARE = 0.1
"""Share of a layer's multiply-accumulates in attention scores from which sparse patterns are proposed."""

CODE_BITS = (24, 12, 12, 12)
"""Bits of each number of a pattern in its integer code."""


@dataclass(frozen=True)
class AttentionPattern:
    """A sparse attention pattern: a sliding window, global tokens, and random blocks.

    Its text is ``local:w``, the sliding window of Longformer (Beltagy et al. 2020, arXiv 2004.05150), or
    ``bigbird:w,g,r`` (BigBird, Zaheer et al. 2020, arXiv 2007.14062) with the seed as fourth number if it is not 0.

    Attributes:
        window: Keys that a token attends to: in a decoder its own and those before it, in an encoder so many on each
            side.
        global_tokens: Number of first tokens that attend to all tokens and that all tokens attend to.
        random_blocks: Blocks of keys outside its window that each block of queries attends to, drawn at random.
        seed: Seed of that draw.
    """

    window: int
    global_tokens: int = 0
    random_blocks: int = 0
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> AttentionPattern | None:
        """The pattern of a text, None for ``full``.

        Raises:
            InputError: If the text is no pattern.
        """
        if text == FULL:
            return None
        match = re.fullmatch(r"local:(\d+)|bigbird:(\d+(?:,\d+){2,3})", str(text))
        numbers = [int(number) for number in (match[1] or match[2]).split(",")] if match else [0]
        if not numbers[0] or any(number >= 2**bits for number, bits in zip(numbers, CODE_BITS, strict=False)):
            raise InputError(
                "an attention pattern must be `full`, `local:w` or `bigbird:w,g,r` with a window above 0 (window, "
                f"global tokens, random blocks), but got `{text}`; write, for example, `local:64`."
            )
        return cls(*numbers)

    def __str__(self) -> str:
        if not (self.global_tokens or self.random_blocks):
            return f"local:{self.window}"
        seed = f",{self.seed}" if self.seed else ""
        return f"bigbird:{self.window},{self.global_tokens},{self.random_blocks}{seed}"

    @property
    def block(self) -> int:
        """Queries that share one gathered set of keys; with half a window, almost all of these keys are used."""
        return max(self.window // 2, min(self.window, 32))

    @property
    def kind(self) -> SparseAttention:
        """The module that computes it."""
        return SparseAttention((self.window, self.global_tokens, self.random_blocks, self.seed, self.block))

    @property
    def faster_from_tokens(self) -> int:
        """Length of a sequence, in tokens, from which it is faster than full attention.

        A window is faster from four windows on, where it computes about 5/8 of all pairs. Global and random keys are
        copied for each block; with them it is faster once a block uses a fifth of all keys. Both limits were measured
        on a CPU (experiments/bench/attention.py).
        """
        if self.global_tokens or self.random_blocks:
            return 5 * self.kind.keys_per_block(causal=False)
        return 4 * self.window


@cache
def encode_pattern(text: str) -> int:
    """The text of a pattern as one integer, for arrays; 0 is ``full``."""
    pattern, code = AttentionPattern.parse(text), 0
    if pattern is not None:
        numbers = pattern.window, pattern.global_tokens, pattern.random_blocks, pattern.seed
        for number, bits in zip(numbers, CODE_BITS, strict=True):
            code = (code << bits) | number
    return code


@cache
def decode_pattern(code: int) -> str:
    """The text of a pattern from the integer that `encode_pattern` gives."""
    numbers = []
    for bits in reversed(CODE_BITS):
        numbers.append(code % 2**bits)
        code >>= bits
    return str(AttentionPattern(*reversed(numbers))) if any(numbers) else FULL


class Attention(Category):
    """The attention pattern; in a layer that skips its attention it is ``full``."""

    def parse(self, value: Any) -> str:
        """The text of the pattern in its shortest form."""
        pattern = AttentionPattern.parse(value)
        return FULL if pattern is None else str(pattern)

    def apply(self, value: Any, draft: LayerDraft) -> None:
        """Makes the attention module sparse."""
        pattern = AttentionPattern.parse(value)
        if pattern is not None:
            draft.replace_attention(pattern.kind)

    def encode(self, value: Any) -> int:
        """See `encode_pattern`."""
        return encode_pattern(value)

    def decode(self, code: int) -> str:
        """See `decode_pattern`."""
        return decode_pattern(code)

    def sort(self, values: Sequence[str]) -> tuple[str, ...]:
        """Distinct patterns, cheapest first and ``full`` last."""
        return tuple(sorted({self.parse(text) for text in values}, key=lambda text: (text == FULL, _cost(text), text)))

    def useful(self, values: Sequence[Any], facts: Facts) -> tuple[list[Any], list[str]]:
        """Patterns that are faster than full attention at the workload's length."""
        limits = {text: _cost(text) for text in values}
        kept = [text for text in values if limits[text] <= facts.tokens]
        late = ", ".join(f"{text} (faster from {n} tokens)" for text, n in limits.items() if n > facts.tokens)
        why = f"{late} dropped: slower than full attention at {facts.tokens} tokens"
        return kept or [FULL] * bool(values), [why] if late else []

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """The two widest windows that are faster, where attention scores take enough of the time."""
        if facts.is_decoding:
            return "one token at a time computes few scores"
        windows = [f"local:{SMALLEST_WINDOW << k}" for k in range(16)]
        faster = [window for window in windows if _cost(window) <= facts.tokens]
        if not faster:
            return f"{facts.tokens} tokens are too few for a window"
        share = attention_score_share(layout, facts.tokens)
        if share < PROPOSED_FROM_SHARE:
            return f"at {facts.tokens} tokens, attention scores are {share:.0%} of a layer's multiplications"
        return [FULL, *faster[-2:]]

    def varies_in(self, family: Family) -> bool:
        """Whether every stack's attention uses transformers' attention interface."""
        return all(stack.attention_module for stack in family.stacks)

    def check_in(self, layout: Layout, value: Any) -> None:
        """Raises InputError unless the layers of the parent can use the pattern."""
        family, pattern = layout.family, AttentionPattern.parse(value)
        if pattern is None:
            return
        if not self.varies_in(family):
            raise InputError(
                f"the attention of `{family.model_type}` must be full, because it does not use transformers' "
                f"attention interface unmodified, but got `{value}`; leave it out."
            )
        slides = any("sliding" in kind for kind in getattr(layout.sizes, "layer_types", None) or ())
        slides = slides or getattr(layout.sizes, "sliding_window", None) is not None
        if (pattern.global_tokens or pattern.random_blocks) and slides and family.is_causal(0):
            raise InputError(
                f"layers of `{family.model_type}` with a sliding window cache no keys outside it, but got `{value}`; "
                "use `local:w`."
            )


def _cost(text: str) -> int:
    """Tokens from which a pattern is faster; 0 for full attention."""
    pattern = AttentionPattern.parse(text)
    return 0 if pattern is None else pattern.faster_from_tokens


ATTENTION = Attention(
    "attention",
    label="attention",
    meaning="Attention pattern of a layer: `full`, `local:w` or `bigbird:w,g,r`.",
    scope="attention",
    neutral=FULL,
)

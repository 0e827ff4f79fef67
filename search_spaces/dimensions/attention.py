"""AttentionPattern: whom a token of a layer attends to, as a value; what it costs, and from where on it pays."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from search_spaces.errors import InputError

FULL = "full"
"""Whatever the stock layer attends to: every token, or those of a window of its own."""

CODE_BITS = (24, 12, 12, 12)
"""Bits of each number of a pattern in its code."""


@dataclass(frozen=True)
class AttentionPattern:
    """A sparse graph of tokens: a window, tokens that see and are seen by all, and random blocks.

    Written ``local:w``, the sliding window of Longformer (Beltagy et al. 2020, arXiv 2004.05150), or ``bigbird:w,g,r``
    with its seed as a fourth number if it is not 0 (BigBird, Zaheer et al. 2020, arXiv 2007.14062).

    Attributes:
        window: Of a decoder, how many keys a token attends to, its own and those before it; of an encoder, how many to
            each side.
        global_tokens: How many tokens, from the first on, attend to all and are attended by all.
        random_blocks: Blocks of keys that each block of queries attends to, drawn from outside its window.
        seed: Of the draw.
    """

    window: int
    global_tokens: int = 0
    random_blocks: int = 0
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> AttentionPattern | None:
        """The pattern that a text means, None for ``full``.

        Raises:
            InputError: If it means none.
        """
        if text == FULL:
            return None
        match = re.fullmatch(r"local:(\d+)|bigbird:(\d+(?:,\d+){2,3})", str(text))
        numbers = [int(number) for number in (match[1] or match[2]).split(",")] if match else [0]
        if not numbers[0] or any(number >= 2**bits for number, bits in zip(numbers, CODE_BITS, strict=False)):
            raise InputError(
                "an attention pattern must be `full`, `local:w` or `bigbird:w,g,r` with a window above 0 (window, "
                f"global tokens, random blocks), but got `{text}`; write, say, `local:64`."
            )
        return cls(*numbers)

    def __str__(self) -> str:
        if not (self.global_tokens or self.random_blocks):
            return f"local:{self.window}"
        seed = f",{self.seed}" if self.seed else ""
        return f"bigbird:{self.window},{self.global_tokens},{self.random_blocks}{seed}"

    @property
    def block(self) -> int:
        """Queries that share a gathered set of keys; half a window leaves little in it that none of them needs."""
        return max(self.window // 2, min(self.window, 32))

    def to_list(self) -> list[int]:
        """The pattern as `nas.modeling.sparse_attention.Graph` has it."""
        return [self.window, self.global_tokens, self.random_blocks, self.seed, self.block]

    def keys_per_block(self, *, causal: bool) -> int:
        """Keys that are gathered for one block of queries."""
        window = self.block + (self.window - 1 if causal else 2 * self.window)
        return window + self.random_blocks * self.block + self.global_tokens

    def computed_pairs(self, tokens: int, *, causal: bool) -> int:
        """Pairs of query and key that are computed for so many tokens, those that are then not listed included."""
        blocks = -(-tokens // self.block) * self.block
        global_pairs = 0 if causal else min(self.global_tokens, tokens) * tokens
        return blocks * self.keys_per_block(causal=causal) + global_pairs

    @property
    def faster_from_tokens(self) -> int:
        """Tokens from which on it is faster than full attention.

        A window pays from four of it, about where it computes 5/8 of all pairs; other keys are copied for each block,
        and pay where they are a fifth of all. Both are measured on a CPU (experiments/bench/attention.py).
        """
        if self.global_tokens or self.random_blocks:
            return 5 * self.keys_per_block(causal=False)
        return 4 * self.window


@cache
def encode_pattern(text: str) -> int:
    """A pattern as one number, for arrays; 0 is ``full``."""
    pattern, code = AttentionPattern.parse(text), 0
    if pattern is not None:
        numbers = pattern.window, pattern.global_tokens, pattern.random_blocks, pattern.seed
        for number, bits in zip(numbers, CODE_BITS, strict=True):
            code = (code << bits) | number
    return code


@cache
def decode_pattern(code: int) -> str:
    """The text of a pattern that `encode_pattern` made a number of."""
    numbers = []
    for bits in reversed(CODE_BITS):
        numbers.append(code % 2**bits)
        code >>= bits
    return str(AttentionPattern(*reversed(numbers))) if any(numbers) else FULL


def sorted_by_cost(patterns: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Distinct patterns, cheapest first and ``full`` last."""
    parsed = {text if (p := AttentionPattern.parse(text)) is None else str(p): p for text in patterns}
    return tuple(sorted(parsed, key=lambda text: (parsed[text] is None, _cost(parsed[text]), text)))


def _cost(pattern: AttentionPattern | None) -> int:
    return pattern.faster_from_tokens if pattern is not None else 0

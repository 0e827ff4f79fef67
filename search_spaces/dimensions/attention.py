"""AttentionPattern: which tokens attend to which, the cost, and the length from which sparse attention is faster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from search_spaces.errors import InputError

FULL = "full"
"""The attention of the stock layer: over all tokens, or over its own sliding window."""

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

    def to_list(self) -> list[int]:
        """The pattern as `nas.modeling.sparse_attention.Graph` stores it."""
        return [self.window, self.global_tokens, self.random_blocks, self.seed, self.block]

    def keys_per_block(self, *, causal: bool) -> int:
        """Keys that are gathered for one block of queries."""
        window = self.block + (self.window - 1 if causal else 2 * self.window)
        return window + self.random_blocks * self.block + self.global_tokens

    def computed_pairs(self, tokens: int, *, causal: bool) -> int:
        """Query-key pairs that are computed for a sequence, including gathered pairs that are then masked."""
        blocks = -(-tokens // self.block) * self.block
        global_pairs = 0 if causal else min(self.global_tokens, tokens) * tokens
        return blocks * self.keys_per_block(causal=causal) + global_pairs

    @property
    def faster_from_tokens(self) -> int:
        """Length of a sequence, in tokens, from which it is faster than full attention.

        A window is faster from four windows on, where it computes about 5/8 of all pairs. Global and random keys are
        copied for each block; with them it is faster once a block uses a fifth of all keys. Both limits were measured
        on a CPU (experiments/bench/attention.py).
        """
        if self.global_tokens or self.random_blocks:
            return 5 * self.keys_per_block(causal=False)
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


def sorted_by_cost(patterns: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Distinct patterns, cheapest first and ``full`` last."""
    parsed = {text if (p := AttentionPattern.parse(text)) is None else str(p): p for text in patterns}
    return tuple(sorted(parsed, key=lambda text: (parsed[text] is None, _cost(parsed[text]), text)))


def _cost(pattern: AttentionPattern | None) -> int:
    return pattern.faster_from_tokens if pattern is not None else 0

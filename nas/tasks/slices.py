"""Slices: the order of examples in which growing slices are fair samples, and batches still save padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Shares of the batches that are slices of an evaluation."""


def slice_ends(batches: int, shares: Sequence[float] = SHARES) -> list[int]:
    """The number of batches in each slice, ascending, at least one; the last is all of them."""
    return [max(1, round(share * batches)) for share in (*sorted(shares), 1.0)]


def fair_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Puts examples into batches, so that those of a slice (see `slice_ends`) are a random sample of all.

    Between two slices, batches hold examples of similar length, which saves padding, and are ordered so that the first
    few of them, for any number, cover the lengths evenly.

    Args:
        lengths: Length of each example.
        size: Examples of a batch; the last may hold fewer.

    Returns:
        Numbers of the examples in each batch; every call gives the same.
    """
    drawn = np.random.default_rng(0).permutation(len(lengths))
    total, batches, begin = -(-len(drawn) // size), list[list[int]](), 0
    for end in slice_ends(total):
        group = sorted(drawn[begin * size : end * size].tolist(), key=lambda number: (lengths[number], number))
        parts = [group[first : first + size] for first in range(0, len(group), size)]
        batches += [parts[number] for number in van_der_corput_order(len(parts))]
        begin = end
    return batches


def van_der_corput_order(count: int) -> list[int]:
    """Returns the integers below ``count`` in the order of the van der Corput sequence (1935), each far from the last.

    Every prefix of the order covers the range evenly.
    """
    bits = max(count - 1, 1).bit_length()
    return [i for i in (int(f"{k:0{bits}b}"[::-1], 2) for k in range(2**bits)) if i < count]

"""Nearest neighbours among vectors, and the agreement of two models on them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

ROWS = 1024
"""Vectors that are compared with all others at once."""


def neighbour_agreement(vectors: np.ndarray, others: np.ndarray, count: int) -> np.ndarray:
    """Returns, for each example, the share of its nearest neighbours that two models have in common.

    Args:
        vectors: Vectors of one model (examples, channels); neighbours are the other examples.
        others: Those of the other model (examples, any channels).
        count: Number of neighbours; all other examples if there are fewer.
    """
    n_examples, count = len(vectors), min(count, len(vectors) - 1)
    if count < 1:
        return np.ones(n_examples)
    pairs = zip(_nearest(vectors, count), _nearest(others, count), strict=True)
    return np.array([len({*a} & {*b}) / count for a, b in pairs])


def _nearest(vectors: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Yields the indices of the nearest other vectors of each, by cosine similarity."""
    unit = normalized(vectors)
    for start in range(0, len(unit), ROWS):
        similarity = unit[start : start + ROWS] @ unit.T
        similarity[np.arange(len(similarity)), np.arange(start, start + len(similarity))] = -np.inf
        yield from np.argpartition(-similarity, count - 1, axis=1)[:, :count]


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Returns the vectors with length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)

"""Nearest neighbours among vectors, and the agreement of two models on them."""

from __future__ import annotations

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
    return is_among(nearest(vectors, count), nearest(others, count)).mean(1)


def nearest(vectors: np.ndarray, count: int, corpus: np.ndarray | None = None) -> np.ndarray:
    """Returns the indices of the nearest vectors of each by cosine similarity, the nearest first (examples, count).

    Args:
        vectors: (examples, channels).
        count: Number of neighbours, at most as many as there are.
        corpus: Vectors among which they are sought (texts, channels); None: the other examples.
    """
    unit = normalized(vectors)
    texts = unit if corpus is None else normalized(corpus)
    found = []
    for start in range(0, len(unit), ROWS):
        similarity = unit[start : start + ROWS] @ texts.T
        if corpus is None:
            similarity[np.arange(len(similarity)), np.arange(start, start + len(similarity))] = -np.inf
        chosen = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(similarity, chosen, 1), axis=1, kind="stable")
        found.append(np.take_along_axis(chosen, order, 1))
    return np.concatenate(found)


def is_among(indices: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns whether each index of an example (examples, count) is one of some others (examples, any count)."""
    return (indices[:, :, None] == others[:, None, :]).any(2)


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Returns the vectors with length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def cosine_similarity(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the cosine similarity of each vector (examples, channels) to the other one of its example."""
    return (normalized(vectors) * normalized(others)).sum(-1)


def partners(vectors: np.ndarray) -> np.ndarray:
    """Returns another example for each, so that the similarities of the pairs are near and far in equal parts.

    The first example gets its nearest one, the second its second nearest, then the fourth nearest, the eighth and so
    on, and from the nearest again: random pairs would nearly all be unrelated.
    """
    n_examples = len(vectors)
    if n_examples < 2:
        return np.zeros(n_examples, dtype=int)
    unit, ranks = normalized(vectors), 2 ** np.arange((n_examples - 1).bit_length())
    chosen = np.minimum(ranks[np.arange(n_examples) % len(ranks)], n_examples - 1)
    others = np.empty(n_examples, dtype=int)
    for row in range(n_examples):
        similarity = unit @ unit[row]
        similarity[row] = np.inf  # itself is the first
        others[row] = np.argsort(-similarity, kind="stable")[chosen[row]]
    return others

"""Expected hypervolume improvement of a batch, by quadrature over the region that no one dominates yet."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def open_region(
    front: np.ndarray, low: np.ndarray, reference: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Uniform points (r, m), at most so many, of the box from ``low`` to ``reference`` that the front leaves open.

    Args:
        front: Objectives (k, m), all minimised.
        low: Best corner of the box (m,).
        reference: Worst corner of the box (m,).
        size: Points drawn before those that the front dominates are dropped.
        rng: Source of randomness.
    """
    points = low + (reference - low) * rng.random((size, len(reference)))
    for best in front:
        points = points[~(points >= best).all(axis=1)]
    return points


def by_expected_improvement(dominates: np.ndarray, chances: np.ndarray, pending: np.ndarray) -> Iterator[int]:
    """Candidates one after another, each adding most to the hypervolume expected of those before it.

    The expected improvement of a set is the integral, over the open region, of the probability that one of the set
    dominates a point. For independent predictions that is one minus a product, so the greedy choice is exact and
    within 1 - 1/e of the best set (the improvement is submodular; Nemhauser et al. 1978).

    Args:
        dominates: Probability (n, r) that each candidate dominates each point of the region.
        chances: Probability (n,) that each candidate is feasible.
        pending: The same as ``dominates`` of what is being evaluated: (p, r).
    """
    weight = np.prod(1 - pending, axis=0)
    left = np.ones(len(dominates), dtype=bool)
    while left.any():
        gains = np.where(left, chances * (dominates @ weight), -1.0)
        best = int(np.argmax(gains))
        left[best] = False
        weight = weight * (1 - chances[best] * dominates[best])
        yield best

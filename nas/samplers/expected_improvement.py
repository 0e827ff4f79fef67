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


def by_expected_improvement(dominates: np.ndarray, pending: np.ndarray) -> Iterator[int]:
    """Candidates one after another, each adding most to the hypervolume expected of those before it.

    The expected improvement of one candidate is the integral, over the open region, of the probability that it is
    feasible and dominates a point. Of several, the best one counts at each point, as if predictions erred together:
    near neighbours, whose errors do go together, then add next to nothing to each other, and a batch spreads out. The
    value of a set is submodular, so that the greedy choice is within 1 - 1/e of the best (Nemhauser et al. 1978).

    Args:
        dominates: Probability (n, r) that each candidate is feasible and dominates each point of the region.
        pending: The same as ``dominates`` of what is being evaluated: (p, r).
    """
    covered = pending.max(axis=0, initial=0.0)
    left = np.ones(len(dominates), dtype=bool)
    while left.any():
        gains = np.where(left, np.maximum(dominates - covered, 0.0).sum(axis=1), -1.0)
        best = int(np.argmax(gains))
        left[best] = False
        covered = np.maximum(covered, dominates[best])
        yield best

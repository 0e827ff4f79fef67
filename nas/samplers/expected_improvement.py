"""Expected hypervolume improvement of a batch, by Monte Carlo integration over the non-dominated region."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def sample_non_dominated_region(
    front: np.ndarray, low: np.ndarray, reference: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Uniform points (r, m) of the box from ``low`` to ``reference`` that no point of the front dominates.

    Args:
        front: Objectives (k, m), all minimised.
        low: Best corner of the box (m,).
        reference: Worst corner of the box (m,).
        size: Points drawn, before the dominated ones are dropped.
        rng: Source of randomness.
    """
    points = low + (reference - low) * rng.random((size, len(reference)))
    for best in front:
        points = points[~(points >= best).all(axis=1)]
    return points


def rank_by_expected_improvement(dominates: np.ndarray, pending: np.ndarray) -> Iterator[int]:
    """Yields candidates in an order in which each adds most to the expected hypervolume of those before it.

    The expected improvement of a candidate is the integral, over the non-dominated region, of the probability that it
    is feasible and dominates a point. For a set of candidates the largest probability counts at each point, as if all
    predictions erred together: similar candidates, whose errors are correlated, then add little to each other, and a
    batch spreads out. The value of a set is submodular, so the greedy order is within 1 - 1/e of the best (Nemhauser
    et al. 1978).

    Args:
        dominates: Probability (n, r) that each candidate is feasible and dominates each point of the region.
        pending: The same for the points that are being evaluated (p, r).
    """
    covered = pending.max(axis=0, initial=0.0)
    remaining = np.ones(len(dominates), dtype=bool)
    while remaining.any():
        gains = np.where(remaining, np.maximum(dominates - covered, 0.0).sum(axis=1), -1.0)
        best = int(np.argmax(gains))
        remaining[best] = False
        covered = np.maximum(covered, dominates[best])
        yield best

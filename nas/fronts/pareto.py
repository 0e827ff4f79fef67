"""Pareto dominance and hypervolume of arrays of objective values, all of them minimised."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def non_dominated(values: Array) -> npt.NDArray[np.bool_]:
    """Marks the rows that no other row dominates; all objectives are minimised.

    Args:
        values: Objective values, shape ``(n, m)``. A row that holds NaN is never on the front and dominates nothing.

    Returns:
        Mask of shape ``(n,)``. Duplicates of a front row are all kept.
    """
    keep: npt.NDArray[np.bool_] = np.zeros(len(values), dtype=bool)
    left = np.flatnonzero(~np.isnan(values).any(axis=1))
    left = left[np.argsort(values[left].sum(axis=1), kind="stable")]
    while len(left):  # the smallest sum of what is left is on the front; with it go its duplicates
        best = values[left[0]]
        keep[left[(values[left] == best).all(axis=1)]] = True
        left = left[(values[left] < best).any(axis=1)]
    return keep


def hypervolume(values: Array, reference: Array) -> float:
    """The volume dominated by the rows up to a reference point, exact; all objectives are minimised.

    The measure is that of Zitzler & Thiele (PPSN 1998); it is computed by slicing along the last objective, one
    objective at a time (HSO: While, Hingston, Barone & Huband, IEEE Trans. Evol. Comput. 10(1), 2006).

    Args:
        values: Objective values, shape ``(n, m)``; rows not strictly better than the reference everywhere, and rows
            that hold NaN, contribute nothing.
        reference: The reference point, shape ``(m,)``.
    """
    values = np.unique(values[(values < reference).all(axis=1)], axis=0)
    if not len(values):
        return 0.0
    if len(reference) == 1:
        return float(reference[0] - values[0, 0])
    if len(reference) == 2:  # sorted by the first objective: a staircase of boxes
        lowest = np.minimum.accumulate(values[:, 1])
        heights = np.concatenate((reference[1:], lowest[:-1])) - lowest
        return float(heights @ (reference[0] - values[:, 0]))
    values = values[non_dominated(values)]
    values = values[np.argsort(values[:, -1], kind="stable")]
    depths = np.diff(values[:, -1], append=reference[-1])
    volumes = (hypervolume(values[: i + 1, :-1], reference[:-1]) * d for i, d in enumerate(depths) if d > 0)
    return float(sum(volumes))

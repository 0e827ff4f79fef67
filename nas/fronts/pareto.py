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
    from moocore import is_nondominated

    mask: npt.NDArray[np.bool_] = np.logical_not(np.isnan(values).any(axis=1))
    if mask.any():
        mask[mask] = is_nondominated(values[mask], keep_weakly=True)
    return mask


def non_dominated_ranks(values: Array) -> npt.NDArray[np.int_]:
    """Front number of each row: 0 is the front, 1 the front of the others, and so on (Deb et al. 2002).

    Args:
        values: Finite objective values, shape ``(n, m)``, all minimised.

    Returns:
        Ranks of shape ``(n,)``; equal rows have equal ranks.
    """
    from moocore import pareto_rank

    if not len(values):
        return np.zeros(0, dtype=int)
    ranks: npt.NDArray[np.int_] = pareto_rank(values).astype(int)
    return ranks


def hypervolume(values: Array, reference: Array) -> float:
    """The volume dominated by the rows up to a reference point, exact (Zitzler & Thiele, PPSN 1998).

    Args:
        values: Objective values, shape ``(n, m)``, all minimised; rows not strictly better than the reference
            everywhere, and rows that hold NaN, contribute nothing.
        reference: The reference point, shape ``(m,)``.
    """
    from moocore import hypervolume as exact_hypervolume

    better = values[(values < reference).all(axis=1)]
    return float(exact_hypervolume(better, ref=reference)) if len(better) else 0.0

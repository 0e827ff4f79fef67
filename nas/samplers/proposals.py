"""Proposals: the points from which a surrogate model expects the largest improvement of the hypervolume."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from nas.fronts.pareto import non_dominated
from nas.samplers.encoding import Encoding
from nas.samplers.expected_improvement import rank_by_expected_improvement, sample_non_dominated_region
from nas.samplers.nsga2 import nsga2
from nas.samplers.problem import Problem, SurrogateModel
from nas.samplers.trial_history import FinishedTrial, split_by_success, values_of, vectors_of

POPULATION, GENERATIONS = 100, 50
LCB_FACTORS = (0.0, 1.0)
"""Standard deviations subtracted from the predictions, one inner search each."""
N_CANDIDATES = 400
"""Candidates whose expected improvement is computed."""
N_SAMPLES, N_REGION_POINTS = 20_000, 2_000
"""Points of the objective space that are drawn, and at most kept."""
MARGIN = 0.1
"""How far the region and the reference point lie beyond the observed values, as a share of their range."""


def propose(
    model: SurrogateModel,
    encoding: Encoding,
    trials: Sequence[FinishedTrial],
    running: np.ndarray,
    rng: np.random.Generator,
) -> Iterator[dict[str, Any]]:
    """Points that no finished trial has and that are likelier to succeed than to fail, best first.

    Each is the one that is expected to add most to the hypervolume of the front, the running trials and the proposals
    before it. If none is expected to be feasible, those with the smallest violation come first.

    Args:
        model: Fitted to the finished trials.
        encoding: The space.
        trials: The finished trials.
        running: Vectors (p, D) of the trials that are being evaluated.
        rng: Source of randomness.
    """
    succeeded, evaluated_keys = split_by_success(trials)[0], {trial.key for trial in trials}
    values, feasible = values_of(succeeded), np.array([trial.feasible for trial in succeeded])
    on_front = non_dominated(np.where(feasible[:, None], values, np.nan))
    start = _start(vectors_of(succeeded), feasible, on_front)
    candidates, violations = _candidates(model, encoding, start, evaluated_keys, rng)
    if not len(candidates) or violations.min() > 0:
        order: Iterator[int] = iter(np.argsort(violations, kind="stable"))
    else:
        scaled = model.scaled(values)
        region = _region(model, candidates, scaled, scaled[on_front], rng)
        pending = model.dominates(running, region) if len(running) else np.zeros((0, len(region)))
        dominates = model.dominates(candidates, region) * (violations <= 0)[:, None]
        order = rank_by_expected_improvement(dominates, pending)
    return (encoding.decode(candidates[i : i + 1])[0] for i in order)


def _start(vectors: np.ndarray, feasible: np.ndarray, on_front: np.ndarray) -> np.ndarray:
    """First vectors of the inner searches: the front and the latest feasible trials, or any if none is feasible."""
    recent = np.flatnonzero(feasible if feasible.any() else ~feasible)[::-1]
    chosen = dict.fromkeys([*np.flatnonzero(on_front)[: POPULATION // 2], *recent])
    return vectors[list(chosen)[:POPULATION]]


def _region(
    model: SurrogateModel, candidates: np.ndarray, values: np.ndarray, front: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Points (r, m) that the front does not dominate and a candidate may, up to slightly worse than all values."""
    margin = MARGIN * np.ptp(values, axis=0)
    low = np.fmin(values.min(0) - margin, model.lower_bounds(candidates))
    points = sample_non_dominated_region(front, low, values.max(0) + margin, N_SAMPLES, rng)
    return model.attainable(candidates, points)[:N_REGION_POINTS]


def _candidates(
    model: SurrogateModel,
    encoding: Encoding,
    start: np.ndarray,
    evaluated_keys: Collection[bytes],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """New vectors on or near the optimistic fronts, and their violations."""
    searches = []
    for factor in LCB_FACTORS:
        vectors, costs, violations = nsga2(
            partial(model.lower_confidence_bound, factor=factor),
            encoding.cardinalities,
            start=start,
            population=POPULATION,
            generations=GENERATIONS,
            rng=rng,
            ordered=encoding.ordered,
            canonical=encoding.canonical,
        )
        size = N_CANDIDATES // len(LCB_FACTORS)
        searches.append(_best(vectors, costs, violations, model.problem, evaluated_keys, size))
    vectors, violations = (np.concatenate(parts) for parts in zip(*searches, strict=True))
    unique = np.unique(vectors, axis=0, return_index=True)[1]
    return vectors[unique], violations[unique]


def _best(
    vectors: np.ndarray,
    costs: np.ndarray,
    violations: np.ndarray,
    problem: Problem,
    evaluated_keys: Collection[bytes],
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """New vectors of the first fronts, only feasible ones if there are any, and their violations."""
    remaining = np.flatnonzero(violations <= 0)
    if not len(remaining):
        remaining = np.argsort(violations, kind="stable")[: 2 * size]
    chosen: dict[bytes, int] = {}
    while len(remaining) and len(chosen) < size:
        on_front = non_dominated(costs[remaining])
        front = remaining[on_front]
        for i, key in zip(front, problem.keys(vectors[front]), strict=True):
            if key not in evaluated_keys:
                chosen.setdefault(key, int(i))
        remaining = remaining[~on_front]
    index = np.array(list(chosen.values()), dtype=int)
    return vectors[index], violations[index]

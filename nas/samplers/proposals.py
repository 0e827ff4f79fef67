"""Proposals: what a model of the finished trials expects to enlarge the dominated hypervolume most."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from nas.fronts.pareto import non_dominated
from nas.samplers.encoding import Encoding
from nas.samplers.expected_improvement import by_expected_improvement, open_region
from nas.samplers.nsga2 import nsga2
from nas.samplers.problem import Model, Problem
from nas.samplers.trial_history import Evaluated, genomes_of, values_of

POPULATION, GENERATIONS = 100, 50
OPTIMISM = (0.0, 1.0)
"""Standard deviations by which the inner searches flatter what is learned; one search each."""
POOL = 400
"""Candidates that expected improvements are computed of."""
DRAWN, REGION = 20_000, 2_000
"""Points of the objective space drawn, and kept where an improvement is possible."""
MARGIN = 0.1
"""The region reaches so far beyond the values seen, as a share of their range; so does the reference point."""


def propose(
    model: Model,
    encoding: Encoding,
    done: Sequence[Evaluated],
    running: np.ndarray,
    rng: np.random.Generator,
) -> Iterator[dict[str, Any]]:
    """Points that no finished trial has had, best first.

    Each is chosen for what it is expected to add to those before it and to the running ones.
    Where nothing is expected to be feasible, those closest to it come first.

    Args:
        model: Of the finished trials.
        encoding: The space.
        done: The finished trials.
        running: Genomes (p, D) of those that are being evaluated.
        rng: Source of randomness.
    """
    values, feasible = values_of(done), np.array([evaluated.feasible for evaluated in done])
    on_front = non_dominated(np.where(feasible[:, None], values, np.nan))
    front, seen = values[on_front], {evaluated.key for evaluated in done}
    pool, violations = _pool(model, encoding, _start(genomes_of(done), feasible, on_front), seen, rng)
    if not len(pool) or violations.min() > 0:
        order: Iterator[int] = iter(np.argsort(violations, kind="stable"))
    else:
        region = _region(model, pool, values, front, rng)
        pending = model.dominates(running, region) if len(running) else np.zeros((0, len(region)))
        order = by_expected_improvement(model.dominates(pool, region) * (violations <= 0)[:, None], pending)
    return (encoding.decode(pool[i : i + 1])[0] for i in order)


def _start(genomes: np.ndarray, feasible: np.ndarray, on_front: np.ndarray) -> np.ndarray:
    """Where the inner searches begin: the front, and the latest feasible trials; any if there are none."""
    recent = np.flatnonzero(feasible if feasible.any() else ~feasible)[::-1]
    chosen = dict.fromkeys([*np.flatnonzero(on_front)[: POPULATION // 2], *recent])
    return genomes[list(chosen)[:POPULATION]]


def _region(
    model: Model, pool: np.ndarray, values: np.ndarray, front: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Points (r, m) that the front leaves open and the pool may reach, up to a little worse than the worst seen."""
    margin = MARGIN * np.ptp(values, axis=0)
    low = np.fmin(values.min(0) - margin, model.lows(pool))
    drawn = open_region(front, low, values.max(0) + margin, DRAWN, rng)
    return model.reachable(pool, drawn)[:REGION]


def _pool(
    model: Model, encoding: Encoding, start: np.ndarray, seen: Collection[bytes], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """New genomes on or near the flattered fronts, and their violations."""
    pools = []
    for optimism in OPTIMISM:
        genomes, costs, violations = nsga2(
            partial(model.flattered, optimism=optimism),
            encoding.cardinalities,
            start=start,
            population=POPULATION,
            generations=GENERATIONS,
            rng=rng,
            ordered=encoding.ordered,
            canonical=encoding.canonical,
        )
        pools.append(_best(genomes, costs, violations, model.problem, seen, POOL // len(OPTIMISM)))
    genomes, violations = (np.concatenate(parts) for parts in zip(*pools, strict=True))
    unique = np.unique(genomes, axis=0, return_index=True)[1]
    return genomes[unique], violations[unique]


def _best(
    genomes: np.ndarray,
    costs: np.ndarray,
    violations: np.ndarray,
    problem: Problem,
    seen: Collection[bytes],
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """New genomes of the first fronts, feasible ones only if there are any, and their violations."""
    left = np.flatnonzero(violations <= 0)
    if not len(left):
        left = np.argsort(violations, kind="stable")[: 2 * size]
    chosen: dict[bytes, int] = {}
    while len(left) and len(chosen) < size:
        layer = non_dominated(costs[left])
        for i, key in zip(left[layer], problem.keys(genomes[left[layer]]), strict=True):
            if key not in seen:
                chosen.setdefault(key, int(i))
        left = left[~layer]
    index = np.array(list(chosen.values()), dtype=int)
    return genomes[index], violations[index]

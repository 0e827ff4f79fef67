"""NSGA-II over vectors of choice indices, vectorised: tens of thousands of predicted candidates in seconds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Genomes (n, D) -> costs to minimise (n, m) and violations (n,), feasible where at most 0."""


def nsga2(
    evaluate: Evaluate,
    cardinalities: np.ndarray,
    *,
    start: np.ndarray,
    population: int = 100,
    generations: int = 50,
    rng: np.random.Generator,
    ordered: np.ndarray | None = None,
    canonical: Callable[[np.ndarray], np.ndarray] = lambda genomes: genomes,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evolves genomes towards the Pareto front of predicted costs (Deb et al. 2002, with its feasibility rule).

    Args:
        evaluate: Scores genomes.
        cardinalities: Number of choices of each gene (D,).
        start: First genomes (n, D), filled up with random ones.
        population: How many survive a generation.
        generations: How many.
        rng: Source of randomness.
        ordered: Whether neighbouring choices of a gene are alike (D,); by default all are.
        canonical: Genomes (n, D) -> the same with genes that do not count set to a fixed choice.

    Returns:
        Every distinct genome that was evaluated, its costs and its violations.
    """
    steps = np.ones(len(cardinalities), dtype=bool) if ordered is None else ordered
    random = rng.integers(0, cardinalities, (max(population - len(start), 0), len(cardinalities)))
    genomes = np.unique(canonical(np.concatenate([start, random])), axis=0)
    costs, violations = evaluate(genomes)
    seen = {genome.tobytes() for genome in genomes}
    archive = [(genomes, costs, violations)]
    for _ in range(generations):
        alive, rank, crowding = survivors(costs, violations, population)
        genomes, costs, violations = genomes[alive], costs[alive], violations[alive]
        children = _offspring(genomes, rank, crowding, cardinalities, steps, population, rng)
        children = np.unique(canonical(children), axis=0)
        children = children[[child.tobytes() not in seen for child in children]]
        if not len(children):
            continue
        seen |= {child.tobytes() for child in children}
        archive.append((children, *evaluate(children)))
        genomes, costs, violations = (
            np.concatenate(pair) for pair in zip((genomes, costs, violations), archive[-1], strict=True)
        )
    everything = [np.concatenate(parts) for parts in zip(*archive, strict=True)]
    return everything[0], everything[1], everything[2]


def survivors(costs: np.ndarray, violations: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the ``size`` best, with their rank and crowding distance; feasible ones first."""
    rank = ranks(costs, violations)
    crowding = np.zeros(len(costs))
    filled = 0
    for level in range(rank.max() + 1):
        members = np.flatnonzero(rank == level)
        crowding[members] = crowding_distance(costs[members])
        filled += len(members)
        if filled >= size:
            break
    order = np.lexsort((-crowding, rank))[:size]
    return order, rank[order], crowding[order]


def ranks(costs: np.ndarray, violations: np.ndarray) -> np.ndarray:
    """Front number of each feasible genome; infeasible ones follow in the order of their violation."""
    rank = np.zeros(len(costs), dtype=int)
    good = np.flatnonzero(violations <= 0)
    mine = costs[good]
    no_worse = np.ones((len(mine), len(mine)), dtype=bool)
    for column in mine.T:
        no_worse &= column[:, None] <= column
    dominates = no_worse & ~no_worse.T
    beaten_by = dominates.sum(0)
    level = 0
    while (front := np.flatnonzero(beaten_by == 0)).size:
        rank[good[front]] = level
        beaten_by -= dominates[front].sum(0)
        beaten_by[front] = -1
        level += 1
    bad = np.flatnonzero(violations > 0)
    rank[bad[np.argsort(violations[bad], kind="stable")]] = level + np.arange(len(bad))
    return rank


def crowding_distance(costs: np.ndarray) -> np.ndarray:
    """Size of the empty box around each point of one front (n, m) -> (n,); its ends are infinitely far."""
    distance = np.zeros(len(costs))
    for column in costs.T:
        order = np.argsort(column, kind="stable")
        width = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if width > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / width
    return distance


def _offspring(
    genomes: np.ndarray,
    rank: np.ndarray,
    crowding: np.ndarray,
    cardinalities: np.ndarray,
    ordered: np.ndarray,
    size: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Binary tournaments, uniform crossover, and a mutation that takes a step (of an ordered gene) or draws anew."""
    a, b = rng.integers(0, len(genomes), (2, 2 * size))
    better = (rank[a] < rank[b]) | ((rank[a] == rank[b]) & (crowding[a] > crowding[b]))
    parents = genomes[np.where(better, a, b)]
    mothers, fathers = parents[:size], parents[size:]
    cross = (rng.random(mothers.shape) < 0.5) & (rng.random((size, 1)) < 0.9)
    children = np.where(cross, fathers, mothers)
    stepped = np.clip(children + rng.choice([-1, 1], children.shape), 0, cardinalities - 1)
    fresh = rng.integers(0, cardinalities, children.shape)
    mutated = np.where((rng.random(children.shape) < 0.5) & ordered, stepped, fresh)
    return np.where(rng.random(children.shape) < 1.0 / len(cardinalities), mutated, children)

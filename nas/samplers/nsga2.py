"""NSGA-II over vectors of choice indices, vectorised for tens of thousands of predicted candidates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nas.fronts.pareto import non_dominated_ranks

Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Genomes (n, D) -> finite costs to minimise (n, m) and violations (n,), at most 0 for feasible genomes."""


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
        evaluate: Computes costs and violations of genomes.
        cardinalities: Number of choices of each gene (D,).
        start: First genomes (n, D); random ones are added up to the population.
        population: How many genomes survive a generation.
        generations: Number of generations.
        rng: Source of randomness.
        ordered: Whether neighbouring choices of a gene are similar (D,); by default all are.
        canonical: Genomes (n, D) -> the same with inactive genes set to a fixed choice.

    Returns:
        Every distinct genome that was evaluated, its costs and its violations.
    """
    is_ordered = np.ones(len(cardinalities), dtype=bool) if ordered is None else ordered
    random = rng.integers(0, cardinalities, (max(population - len(start), 0), len(cardinalities)))
    genomes = np.unique(canonical(np.concatenate([start, random])), axis=0)
    costs, violations = evaluate(genomes)
    seen = {genome.tobytes() for genome in genomes}
    archive = [(genomes, costs, violations)]
    for _ in range(generations):
        surviving, rank, crowding = survivors(costs, violations, population)
        genomes, costs, violations = genomes[surviving], costs[surviving], violations[surviving]
        children = _offspring(genomes, rank, crowding, cardinalities, is_ordered, population, rng)
        children = np.unique(canonical(children), axis=0)
        children = children[[child.tobytes() not in seen for child in children]]
        if not len(children):
            continue
        seen |= {child.tobytes() for child in children}
        archive.append((children, *evaluate(children)))
        genomes, costs, violations = (
            np.concatenate(pair) for pair in zip((genomes, costs, violations), archive[-1], strict=True)
        )
    genomes, costs, violations = (np.concatenate(parts) for parts in zip(*archive, strict=True))
    return genomes, costs, violations


def survivors(costs: np.ndarray, violations: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the ``size`` best genomes, with their rank and crowding distance; feasible ones come first."""
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
    """Front number of each feasible genome (n,); infeasible ones follow in the order of their violation."""
    rank = np.zeros(len(costs), dtype=int)
    feasible = violations <= 0
    rank[feasible] = non_dominated_ranks(costs[feasible])
    n_fronts = rank[feasible].max(initial=-1) + 1
    infeasible = np.flatnonzero(~feasible)
    rank[infeasible[np.argsort(violations[infeasible], kind="stable")]] = n_fronts + np.arange(len(infeasible))
    return rank


def crowding_distance(costs: np.ndarray) -> np.ndarray:
    """Size (n,) of the empty box around each point of one front (n, m); infinite at its ends."""
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
    """Binary tournaments, uniform crossover, and mutation: a step for an ordered gene, or a random choice."""
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

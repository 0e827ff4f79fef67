"""Proposals: what a model of the finished trials expects to enlarge the dominated hypervolume most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from nas.encoding import Encoding, Params
from nas.improvement import by_expected_improvement, open_region
from nas.ledger import Evaluated, constraint_of, genomes_of, values_of
from nas.nsga2 import nsga2
from nas.pareto import non_dominated
from predictors.surrogate import Learned

POPULATION, GENERATIONS = 100, 50
OPTIMISM = (0.0, 1.0)
"""Standard deviations by which the inner searches flatter what is learned; one search each."""
POOL = 400
REGION = 20_000


class Problem(Protocol):
    """What a sampler may know of a search beyond its study. Genomes are those of its `Encoding`.

    Attributes:
        known_constraints: Names of the constraints that `known` accounts for; others are learned from the trials.
    """

    known_constraints: frozenset[str]

    def key(self, params: Params) -> str:
        """The same for parameters that mean the same thing, so that nothing is proposed twice."""
        ...

    def features(self, genomes: np.ndarray) -> np.ndarray:
        """Features (n, d) of genomes (n, D) for the surrogates."""
        ...

    def known(self, genomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Objectives (n, m) of genomes (n, D) in the study's own directions, NaN where they must be learned, and the summed violation
        of the known constraints (n,), at most 0 where they hold."""
        ...


class Model:
    """Every objective and constraint of any point: exact where known, else learned with a spread.

    Args:
        problem: What is known.
        signs: 1 for each objective that is minimised, -1 for others (m,).
        done: What to learn from.
        seed: Folds of the cross-validation.
    """

    def __init__(self, problem: Problem, signs: np.ndarray, done: Sequence[Evaluated], seed: int) -> None:
        self.problem, self.signs = problem, signs
        genomes, values = genomes_of(done), values_of(done)
        features = problem.features(genomes)
        learned = np.flatnonzero(np.isnan(problem.known(genomes[:1])[0][0]))
        names = sorted({name for evaluated in done for name in evaluated.constraints} - problem.known_constraints)
        self.objectives = {int(k): Learned(features, values[:, k], seed) for k in learned}
        self.constraints = {name: Learned(features, constraint_of(done, name), seed) for name in names}

    def update(self, done: Sequence[Evaluated]) -> None:
        """Learns from other trials without choosing and tuning the surrogates anew."""
        features, values = self.problem.features(genomes_of(done)), values_of(done)
        for k, learned in self.objectives.items():
            learned.update(features, values[:, k])
        for name, learned in self.constraints.items():
            learned.update(features, constraint_of(done, name))

    def known(self, genomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Known objectives to minimise (n, m), NaN where they are learned, and known violations (n,)."""
        values, violations = self.problem.known(genomes)
        return values * self.signs, violations

    def flattered(self, genomes: np.ndarray, optimism: float) -> tuple[np.ndarray, np.ndarray]:
        """Objectives (n, m), learned ones on their own scale and lowered by some deviations; and violations (n,)."""
        costs, violations = self.known(genomes)
        features = self.problem.features(genomes)
        for k, learned in self.objectives.items():
            mean, deviation = learned.predict(features)
            costs[:, k] = mean - optimism * deviation
        for learned in self.constraints.values():
            mean, deviation = learned.predict(features)
            violations = violations + np.maximum(mean - optimism * deviation - learned.transform(np.zeros(1)), 0.0)
        return costs, violations

    def dominates(self, genomes: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Probability (n, r) that each candidate is at least as good as each point (r, m) in every objective."""
        known, features = self.known(genomes)[0], self.problem.features(genomes)
        probability = np.ones((len(genomes), len(points)))
        for k in range(points.shape[1]):
            if k in self.objectives:
                probability *= self.objectives[k].probability_below(features, points[:, k])
            else:
                probability *= known[:, k : k + 1] <= points[:, k]
        return probability

    def reachable(self, genomes: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Those of the points (r, m) that some candidate may dominate, two deviations above its expectation."""
        costs, _ = self.flattered(genomes, 2.0)
        scaled = points.copy()
        for k, learned in self.objectives.items():
            scaled[:, k] = learned.transform(points[:, k])
        costs = costs[non_dominated(costs)]
        left = np.arange(len(points))
        for cost in costs:
            left = left[~(scaled[left] >= cost).all(axis=1)]
        found = np.ones(len(points), dtype=bool)
        found[left] = False
        return points[found]

    def chances(self, genomes: np.ndarray) -> np.ndarray:
        """Probability (n,) that the learned constraints hold."""
        features, chances = self.problem.features(genomes), np.ones(len(genomes))
        for learned in self.constraints.values():
            chances *= learned.probability_below(features, np.zeros(1))[:, 0]
        return chances


def propose(
    model: Model,
    encoding: Encoding,
    done: Sequence[Evaluated],
    running: Sequence[Params],
    taken: Callable[[str], bool],
    rng: np.random.Generator,
) -> Iterator[dict[str, Any]]:
    """New points, best first, each chosen for what it is expected to add to those before it and to the running ones.

    Where nothing is expected to be feasible, those closest to it come first.
    """
    values, feasible = values_of(done), np.array([evaluated.feasible for evaluated in done])
    front = values[feasible][non_dominated(values[feasible])]
    start = genomes_of([evaluated for evaluated in done if evaluated.feasible] or done)[-POPULATION:]
    pool, violations = _pool(model, encoding, start, taken, rng)
    if not len(pool):
        return
    params = encoding.decode(pool)
    if violations.min() > 0:
        yield from (params[i] for i in np.argsort(violations, kind="stable"))
        return
    worst, width = values.max(0), np.ptp(values, axis=0)
    known = model.known(pool)[0]
    low = np.fmin(values.min(0) - 0.1 * width, known.min(0))
    region = open_region(front, low, worst + 0.1 * width, REGION, rng)
    region = model.reachable(pool, region)[:2000]
    order = by_expected_improvement(
        model.dominates(pool, region),
        model.chances(pool) * (violations <= 0),
        model.dominates(encoding.encode(running), region) if running else np.zeros((0, len(region))),
    )
    yield from (params[i] for i in order)


def _pool(
    model: Model, encoding: Encoding, start: np.ndarray, taken: Callable[[str], bool], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """New genomes on or near the flattered fronts, and their violations."""
    pools = []
    for optimism in OPTIMISM:
        genomes, costs, violations = nsga2(
            lambda genomes: model.flattered(genomes, optimism),
            encoding.cardinalities,
            start=start,
            population=POPULATION,
            generations=GENERATIONS,
            rng=rng,
            ordered=encoding.ordered,
            canonical=encoding.canonical,
        )
        pools.append(_best(genomes, costs, violations, model.problem, encoding, taken, POOL // len(OPTIMISM)))
    genomes, violations = (np.concatenate(parts) for parts in zip(*pools, strict=True))
    unique = np.unique(genomes, axis=0, return_index=True)[1]
    return genomes[unique], violations[unique]


def _best(
    genomes: np.ndarray,
    costs: np.ndarray,
    violations: np.ndarray,
    problem: Problem,
    encoding: Encoding,
    taken: Callable[[str], bool],
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """New genomes of the first fronts, feasible ones only if there are any, and their violations."""
    left = np.flatnonzero(violations <= 0)
    if not len(left):
        left = np.argsort(violations, kind="stable")[: 2 * size]
    chosen: dict[str, int] = {}
    while len(left) and len(chosen) < size:
        layer = non_dominated(costs[left])
        for i, params in zip(left[layer], encoding.decode(genomes[left[layer]]), strict=True):
            key = problem.key(params)
            if not taken(key):
                chosen.setdefault(key, int(i))
        left = left[~layer]
    index = np.array(list(chosen.values()), dtype=int)
    return genomes[index], violations[index]



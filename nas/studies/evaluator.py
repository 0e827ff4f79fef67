"""Evaluator: every figure of any subnetwork of a run, from exact counts, the latency predictor and what was scored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from nas.fronts.point import Point
from nas.recipe.objectives import COSTS
from nas.recipe.schema import Recipe
from nas.studies.racing import SLICES, Outcome, Race, Scorer
from nas.supernets.supernet import Supernet
from nas.tasks.evaluation import EvaluationSet
from predictors import AnalyticCosts, SubnetPredictor
from search_spaces import SubnetConfig


@dataclass
class Evaluator:
    """Figures of any subnetwork of a run: quality on the search slice, predicted latency, exact counts."""

    recipe: Recipe
    supernet: Supernet
    examples: EvaluationSet
    predictor: SubnetPredictor

    def __post_init__(self) -> None:
        self.counts = AnalyticCosts.from_model(self.supernet.model, self.supernet.layout)
        self._costs: dict[str, dict[str, float]] = {}

    def known(self, names: Iterable[str], subnets: Sequence[SubnetConfig]) -> dict[str, np.ndarray]:
        """Those of some figures that are costs: name -> (n,), known without running the subnetworks."""
        costs = [name for name in COSTS if name in names]
        found = self.counts.count([n for n in costs if n != "latency_ms"], subnets, self.recipe.workload)
        return found | ({"latency_ms": self.predictor.predict(subnets)} if "latency_ms" in costs else {})

    def cost(self, name: str, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """One cost of many subnetworks (n,)."""
        return self.known([name], subnets)[name]

    def costs(self, subnet: SubnetConfig) -> dict[str, float]:
        """Every cost of one subnetwork."""
        if subnet.key not in self._costs:
            found = self.known(("latency_ms", *self.counts.cost_names), [subnet])
            self._costs[subnet.key] = {name: float(values[0]) for name, values in found.items()}
        return self._costs[subnet.key]

    def violations(self, figures: dict[str, float]) -> dict[str, float]:
        """Constraint -> how far it is missed; at most 0 where it holds. Figures not known yet are left out."""
        return {n: b.violation(figures[n]) for n, b in self.recipe.bounds.items() if n in figures}

    def feasible(self, subnet: SubnetConfig) -> bool:
        """Whether the constraints on costs hold."""
        bounded = {n: float(v[0]) for n, v in self.known(self.recipe.constraints, [subnet]).items()}
        return all(v <= 0 for v in self.violations(bounded).values())

    @property
    def scorer(self) -> Scorer:
        """What scores a subnetwork, with its weights and its examples."""
        return Scorer(self.supernet, self.examples, self.recipe.metric_names)

    def race(self, subnet: SubnetConfig, front: np.ndarray) -> Race | None:
        """What a subnetwork must be able to reach beside a front; None where the recipe wants all in full."""
        confidence = self.recipe.search.confidence
        if confidence == 1:
            return None
        width = NormalDist().inv_cdf(1 - (1 - confidence) / len(SLICES))  # Bonferroni: it may stop after each slice
        return Race(self.recipe.objectives, self.recipe.bounds, self.costs(subnet), front, width)

    def point(self, subnet: SubnetConfig, outcome: Outcome) -> Point:
        """Every figure of an evaluated subnetwork."""
        values = {**{name: value for name, (value, _) in outcome.scores.items()}, **self.costs(subnet)}
        errors = {name: error for name, (_, error) in outcome.scores.items()}
        errors["latency_ms"] = float(self.predictor.spread_ms([subnet])[0])
        feasible = all(v <= 0 for v in self.violations(values).values())
        return Point(subnet, values, errors, "search", measured=False, feasible=feasible)

"""Evaluator: the values of any subnetwork of a run, from exact counts, the latency predictor and its scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nas.fronts.point import Point
from nas.recipe.checks import BLOCK_SEARCH
from nas.recipe.schema import Recipe
from nas.studies.racing import EarlyStopping, Outcome, Scorer, stopping_width
from nas.supernets.counted_costs import count_costs
from nas.supernets.supernet import Supernet
from nas.tasks.evaluation import EvaluationSet
from nas.tasks.types.language_modeling import PARENT_DIVERGENCE
from predictors import AnalyticCosts
from predictors.latency.throughput import CostPredictor
from search_spaces import SubnetConfig


@dataclass
class Evaluator:
    """Values of any subnetwork of a run: metrics on the search slice, predicted latency, exact counts.

    Attributes:
        recipe: Objectives, constraints and workloads.
        supernet: The shared weights.
        examples: The search slice.
        predictors: Name of a cost that is not counted, such as ``latency_ms`` -> what predicts it.
        in_other_sizes: Size of inputs, `SubnetConfig.input_size` -> the search slice as such inputs.
        counts: Exact costs.
    """

    recipe: Recipe
    supernet: Supernet
    examples: EvaluationSet
    predictors: Mapping[str, CostPredictor]
    in_other_sizes: Mapping[str, EvaluationSet] = field(default_factory=dict)

    def __post_init__(self) -> None:
        net = self.supernet
        self.counts = AnalyticCosts.from_model(net.model, net.layout, self.recipe.task.type, net.dtype)
        self._costs: dict[str, dict[str, float]] = {}

    def known_values(self, names: Iterable[str], subnets: Sequence[SubnetConfig]) -> dict[str, np.ndarray]:
        """The costs among some metrics and costs: name -> (n,), known without running the subnetworks."""
        wanted = set(names)
        counted = count_costs(self.counts, self.recipe, subnets, wanted)
        return counted | {n: each.predict(subnets) for n, each in self.predictors.items() if n in wanted}

    def cost(self, name: str, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """One cost of many subnetworks (n,)."""
        return self.known_values([name], subnets)[name]

    def costs(self, subnet: SubnetConfig) -> dict[str, float]:
        """Every cost of one subnetwork."""
        if subnet.key not in self._costs:
            values = count_costs(self.counts, self.recipe, [subnet])
            values |= {name: predictor.predict([subnet]) for name, predictor in self.predictors.items()}
            self._costs[subnet.key] = {name: float(column[0]) for name, column in values.items()}
        return self._costs[subnet.key]

    def violations(self, values: dict[str, float]) -> dict[str, float]:
        """Constraint -> by how much it is missed, at most 0 if it holds; those on unknown values are left out."""
        return {n: b.violation(values[n]) for n, b in self.recipe.bounds.items() if n in values}

    def feasible(self, subnet: SubnetConfig) -> bool:
        """Whether the constraints on costs hold."""
        values = {n: float(v[0]) for n, v in self.known_values(self.recipe.constraints, [subnet]).items()}
        return all(v <= 0 for v in self.violations(values).values())

    @property
    def block_score(self) -> str:
        """The metric that tells a block search how good a replacement is.

        Of a language model that is not trained it is the divergence from the parent's predictions, as in Puzzle
        (Bercovich et al. 2024, arXiv 2411.19146): no text that the parent predicts badly speaks for a block. Else, and
        where subnetworks read other tokens than the parent, it is the primary metric.
        """
        recipe, task = self.recipe, self.examples.task
        is_parent = not recipe.supernet.is_trained and not self.in_other_sizes
        scores_blocks = recipe.search.sampler == BLOCK_SEARCH and task.reads_blocks
        return PARENT_DIVERGENCE if is_parent and scores_blocks else recipe.primary_metric

    @property
    def scorer(self) -> Scorer:
        """A function that scores subnetworks on the search slice."""
        names = list(dict.fromkeys((*self.recipe.metric_names, self.block_score)))
        return Scorer(self.supernet, self.examples, names, self.in_other_sizes)

    def early_stopping(self, subnet: SubnetConfig, front: np.ndarray) -> EarlyStopping | None:
        """When to stop the evaluation of a subnetwork, given the front; None if ``search.confidence`` is 1: never."""
        confidence = self.recipe.search.confidence
        if confidence == 1:
            return None
        objectives, bounds = self.recipe.objectives, self.recipe.bounds
        return EarlyStopping(objectives, bounds, self.costs(subnet), front, stopping_width(confidence))

    def point(self, subnet: SubnetConfig, outcome: Outcome) -> Point:
        """All values of an evaluated subnetwork."""
        values = {**{name: value for name, (value, _) in outcome.scores.items()}, **self.costs(subnet)}
        errors = {name: error for name, (_, error) in outcome.scores.items()}
        errors |= {name: each.residual_bound * values[name] for name, each in self.predictors.items()}
        feasible = all(v <= 0 for v in self.violations(values).values())
        return Point(subnet, values, errors, "search", measured=False, feasible=feasible)

"""Racing: an evaluation on growing slices of the data, stopped once it can hardly reach the front any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from nas.recipe.objectives import Bound, Direction
from nas.studies.failures import Failure
from nas.tasks.slices import SHARES
from search_spaces.dimension import FULL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nas.supernets.supernet import Supernet
    from nas.tasks.evaluation import EvaluationSet
    from search_spaces import SubnetConfig

MIN_EXAMPLES = 100
"""No evaluation stops on fewer, as their standard error is unreliable."""


WIDENING = 1.1
"""Factor on intervals, as standard errors are estimates too: of 200 resamples of some hundred examples, with skewed
losses. Without it 1.3 % of good candidates were stopped on texts where 1 % is promised (experiments/bench)."""


def stopping_width(confidence: float) -> float:
    """Half the width of an interval, in standard errors, that stops a good candidate as rarely as a confidence says.

    The evaluation may stop after each slice (Bonferroni). A confidence is below 1.
    """
    return WIDENING * NormalDist().inv_cdf(1 - (1 - confidence) / len(SHARES))


@dataclass(frozen=True)
class EarlyStopping:
    """When to stop the evaluation of a subnetwork: once even an optimistic score cannot reach the front.

    Attributes:
        objectives: Objective -> its direction.
        bounds: The constraints.
        costs: The costs of this subnetwork, known without evaluating it.
        front: (n, objectives) values of the feasible front so far, signed to be minimised.
        width: Half width of the confidence interval in standard errors; infinite: never stop.
    """

    objectives: Mapping[str, Direction]
    bounds: Mapping[str, Bound]
    costs: Mapping[str, float]
    front: np.ndarray
    width: float

    def cannot_reach_front(self, scores: Mapping[str, tuple[float, float]], share: float) -> bool:
        """Whether the best values within the confidence intervals break a constraint or are dominated.

        Args:
            scores: Metric on a slice -> value and standard error.
            share: The share of the examples in the slice. The mean of a slice varies around that of all examples by
                the standard error times the square root of (1 - share): sampling without replacement (Cochran, 1977).
        """
        width = self.width * (1.0 - share) ** 0.5

        def optimistic(name: str, up: bool) -> float:
            if name not in scores:
                return self.costs[name]
            value, error = scores[name]
            margin = width * error if error > 0 else np.inf
            return value + margin if up else value - margin

        for name, part in ((name, part) for name, bound in self.bounds.items() for part in bound.parts):
            if part.op != "==" and part.violation(optimistic(name, part.op in (">", ">="))) > 0:
                return True
        ups = {name: direction == "maximize" for name, direction in self.objectives.items()}
        best = np.array([-optimistic(name, up) if up else optimistic(name, up) for name, up in ups.items()])
        return bool(((self.front <= best).all(axis=1) & (self.front < best).any(axis=1)).any())


@dataclass(frozen=True)
class Outcome:
    """The result of one evaluation.

    Attributes:
        scores: Metric -> value and standard error; empty if the evaluation failed.
        examples: How many examples were scored.
        is_complete: Whether these were all examples.
        failure: Why the evaluation failed, if it did.
    """

    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    examples: int = 0
    is_complete: bool = True
    failure: Failure | None = None


Evaluate = Callable[["SubnetConfig", "EarlyStopping | None"], Outcome]
"""A subnetwork and when to stop its evaluation (None: never) -> its outcome."""


@dataclass(frozen=True)
class Scorer:
    """Evaluates subnetworks on a supernet.

    Attributes:
        supernet: The shared weights.
        examples: The examples to score, in batches of similar length.
        names: The metrics.
        in_other_sizes: Size of inputs, `SubnetConfig.input_size` -> the same examples as such inputs.
    """

    supernet: Supernet
    examples: EvaluationSet
    names: Sequence[str]
    in_other_sizes: Mapping[str, EvaluationSet] = field(default_factory=dict)

    @cached_property
    def _compared(self) -> EvaluationSet:
        """The examples, with the parent's predictions where the divergence from them is a metric."""
        from nas.supernets.parent_predictions import with_parent_predictions
        from nas.tasks.types.language_modeling import PARENT_DIVERGENCE

        is_compared = PARENT_DIVERGENCE in self.names
        return with_parent_predictions(self.supernet, self.examples) if is_compared else self.examples

    def __call__(self, subnet: SubnetConfig, early_stopping: EarlyStopping | None) -> Outcome:
        """Scores a subnetwork on all examples, or until it cannot reach the front."""
        from nas.tasks.evaluation import score_in_slices

        examples = self.in_other_sizes[subnet.input_size] if subnet.input_size != FULL else self._compared
        self.supernet.activate(subnet)
        sizes = [len(part) for part, _ in examples.parts(self.names)]
        total = sum(sizes)
        rungs = [share for share in SHARES if early_stopping and share * min(sizes) >= MIN_EXAMPLES]
        for count, scores in score_in_slices(self.supernet.model, examples, self.names, rungs):
            values = {name: (score.value, score.standard_error) for name, score in scores.items()}
            if early_stopping and count < total and early_stopping.cannot_reach_front(values, count / total):
                return Outcome(values, count, is_complete=False)
        return Outcome(values, count)


def evaluate_safely(evaluate: Evaluate, subnet: SubnetConfig, early_stopping: EarlyStopping | None) -> Outcome:
    """The outcome of an evaluation; one that raises or returns a value that is not finite has failed."""
    try:
        outcome = evaluate(subnet, early_stopping)
    except Exception as error:
        return Outcome(failure=Failure.from_exception(error))
    not_finite = [name for name, (value, _) in outcome.scores.items() if not np.isfinite(value)]
    if not_finite:
        value = outcome.scores[not_finite[0]][0]
        return Outcome(failure=Failure("not finite", f"`{not_finite[0]}` must be a finite number, but is {value}"))
    return outcome

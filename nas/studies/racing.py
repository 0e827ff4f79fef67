"""Racing: an evaluation on growing slices of the data, stopped once it is sure that it cannot join the front."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from nas.recipe.objectives import Bound, Direction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nas.supernets.supernet import Supernet
    from nas.tasks.evaluation import EvaluationSet
    from search_spaces import SubnetConfig

SLICES = (1 / 8, 1 / 4, 1 / 2)
"""Parts of the examples after which an evaluation may stop."""
FEWEST_EXAMPLES = 100
"""No evaluation stops on fewer: a standard error of fewer says little."""


@dataclass(frozen=True)
class Race:
    """What an evaluation must still be able to reach to be worth finishing.

    Attributes:
        objectives: Every objective and its direction.
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

    def is_lost(self, scores: Mapping[str, tuple[float, float]], share: float) -> bool:
        """Whether even the good end of every interval breaks a constraint or is dominated.

        Args:
            scores: Quality on a slice -> value and standard error.
            share: The part of the examples in it; its mean varies around that of all of them by a standard error
                times the square root of (1 - share), as in sampling without replacement (Cochran, 1977).
        """
        reach = self.width * (1.0 - share) ** 0.5

        def hoped(name: str, up: bool) -> float:
            if name not in scores:
                return self.costs[name]
            value, error = scores[name]
            margin = reach * error if error > 0 else np.inf
            return value + margin if up else value - margin

        for name, bound in self.bounds.items():
            if bound.op != "==" and bound.violation(hoped(name, bound.op in (">", ">="))) > 0:
                return True
        ways = self.objectives.items()
        best = np.array([-hoped(name, True) if way == "maximize" else hoped(name, False) for name, way in ways])
        return bool(((self.front <= best).all(axis=1) & (self.front < best).any(axis=1)).any())


@dataclass(frozen=True)
class Outcome:
    """What came of one evaluation.

    Attributes:
        scores: Quality -> value and standard error; empty if it failed.
        examples: How many examples it took.
        whole: Whether these were all of them.
        failure: The traceback, if it failed.
    """

    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    examples: int = 0
    whole: bool = True
    failure: str | None = None


Evaluate = Callable[["SubnetConfig", "Race | None"], Outcome]
"""A subnetwork and what it must beat (None: evaluate it in full) -> what came of it."""


@dataclass(frozen=True)
class Scorer:
    """Evaluates subnetworks on a supernet.

    Attributes:
        supernet: The shared weights.
        examples: What they are scored on, batches of similar length.
        names: The qualities.
    """

    supernet: Supernet
    examples: EvaluationSet
    names: Sequence[str]

    def __call__(self, subnet: SubnetConfig, race: Race | None) -> Outcome:
        """Scores a subnetwork on all examples, or on as many as it takes to see that it is lost."""
        from nas.tasks.evaluation import score_in_slices

        self.supernet.activate(subnet)
        in_all = len(self.examples)
        slices = [part for part in SLICES if race and part * in_all >= FEWEST_EXAMPLES]
        for count, scores in score_in_slices(self.supernet.model, self.examples, self.names, slices):
            found = {name: (score.value, score.standard_error) for name, score in scores.items()}
            if race and count < in_all and race.is_lost(found, count / in_all):
                return Outcome(found, count, whole=False)
        return Outcome(found, count)


def attempt(evaluate: Evaluate, subnet: SubnetConfig, race: Race | None) -> Outcome:
    """The outcome of an evaluation; an error or a figure that is not a number is one too."""
    try:
        outcome = evaluate(subnet, race)
    except Exception:
        return Outcome(failure=traceback.format_exc())
    wrong = [name for name, (value, _) in outcome.scores.items() if not np.isfinite(value)]
    if wrong:
        return Outcome(failure=f"`{wrong[0]}` must be a finite number, but is {outcome.scores[wrong[0]][0]}")
    return outcome

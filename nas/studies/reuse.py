"""Evaluations of a run under earlier objectives and constraints: they are judged anew, not made again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nas.fronts.point import Point
from nas.samplers.trial_history import STANDARD_ERRORS
from nas.studies.evaluation_cache import EvaluationCache
from nas.studies.evaluator import Evaluator
from nas.studies.storage import batched_writes
from nas.studies.study import complete_trials, point_from_trial, standard_errors, study_kind
from search_spaces import SearchSpace


def reuse_trials(
    studies: Mapping[str, optuna.Study],
    earlier: Sequence[optuna.Study],
    space: SearchSpace,
    evaluator: Evaluator,
    cache: EvaluationCache,
) -> int:
    """Takes the evaluations of earlier studies over, as far as all values that the recipe names are known.

    A subnetwork that was evaluated on all examples becomes a complete trial of the study of the same kind. One whose
    evaluation stopped early waits there: it is evaluated again only if it may reach the front now.

    Args:
        studies: Of the recipe, by kind.
        earlier: Studies of the same run with other objectives or constraints.
        space: All subnetworks.
        evaluator: The objectives and constraints that judge them.
        cache: Gets the values that are known.

    Returns:
        How many trials are new in the studies.
    """
    n_new = 0
    for study in earlier:
        trials = list(_known(study, evaluator))
        for trial, point in trials:
            if (examples := trial.user_attrs.get("examples")) is None:
                cache.complete.setdefault(point.key, point)
            else:
                cache.truncated.setdefault(point.key, (point, examples))
        if (target := studies.get(study_kind(study))) is not None:
            n_new += _add(target, trials, space, evaluator)
    return n_new


def _known(study: optuna.Study, evaluator: Evaluator) -> Iterable[tuple[FrozenTrial, Point]]:
    """The trials of an earlier study that have every metric that the recipe names, and their points, judged by it.

    Costs that it names and they lack are known without an evaluation.
    """
    names = set(evaluator.recipe.metric_names)
    for trial in complete_trials(study):
        if "point" in trial.user_attrs and names <= trial.user_attrs["point"]["values"].keys():
            point = point_from_trial(trial, study_kind(study))
            values = evaluator.costs(point.subnet) | point.values
            feasible = all(value <= 0 for value in evaluator.violations(values).values())
            yield trial, replace(point, values=values, feasible=feasible)


def _add(
    study: optuna.Study, trials: Iterable[tuple[FrozenTrial, Point]], space: SearchSpace, evaluator: Evaluator
) -> int:
    """Adds the trials whose subnetwork the study does not have; returns how many."""
    present = {space.parameters.to_subnet(trial.params).key for trial in study.get_trials(deepcopy=False)}
    new: dict[str, FrozenTrial] = {}
    for trial, point in trials:
        if point.key not in present:
            new.setdefault(point.key, _as_trial(trial, point, evaluator))
    with batched_writes(study, durable=True):
        study.add_trials(new.values())
    return len(new)


def _as_trial(trial: FrozenTrial, point: Point, evaluator: Evaluator) -> FrozenTrial:
    """A trial judged by other objectives and constraints; one that stopped early waits."""
    known: dict[str, Any] = {"params": trial.params, "distributions": trial.distributions}
    if "examples" in trial.user_attrs:
        return optuna.create_trial(state=TrialState.WAITING, **known)
    names = ("key", "search_s", "planned")
    return optuna.create_trial(
        values=[point.values[name] for name in evaluator.recipe.objectives],
        user_attrs={
            **{name: trial.user_attrs[name] for name in names if name in trial.user_attrs},
            "point": point.to_dict(),
            STANDARD_ERRORS: standard_errors(point, evaluator.recipe),
        },
        constraints=evaluator.violations(point.values),
        **known,
    )

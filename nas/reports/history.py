"""The history of a run: hypervolume curves, parameter importance, training losses, predicted and measured latency."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nas.fronts.front import minimized_values, reference_point
from nas.fronts.point import Point
from nas.runs.files import read_json
from nas.runs.parent_values import read_parent_values
from nas.runs.run import Run
from nas.studies.search_progress import HypervolumeReference, SearchProgress
from nas.studies.study import STUDIES, complete_trials, open_repeats, open_studies, point_from_trial, study_kind
from predictors import SubnetPredictor

if TYPE_CHECKING:
    import optuna

IMPORTANCE_TRIALS = 300
"""Trials from which importance is computed; more change it little and take longer."""
TREES = 32


def history(run: Run, verified: Sequence[Point]) -> dict[str, Any]:
    """The history of a run as plain values, for the report.

    Returns:
        ``growth``: see `growth`; ``importance``: see `importance`; ``training``: stage -> see `losses`; ``predictor``:
        name of a workload -> see `predicted_vs_measured`.
    """
    studies = open_studies(run.study, run.recipe)
    logs = {stage.name: stage / "training.json" for stage in run.trained_folders}
    return {
        "growth": growth(run, [*studies.values(), *open_repeats(run.study, run.recipe).values()]),
        "importance": importance(studies),
        "training": {name: read_json(file, parse=losses) for name, file in logs.items() if file.is_file()},
        "predictor": {
            target.name: predicted_vs_measured(
                studies.values(), target.load_predictor(), verified, target.cost_name("latency_ms")
            )
            for target in run.targets
        },
    }


def growth(run: Run, studies: Iterable[optuna.Study]) -> dict[str, Any]:
    """The hypervolume of each study after each evaluation, all from one reference point.

    Returns:
        ``reference``: objective -> value; ``curves``: one dict per study, with ``study``, ``seconds`` since its first
        evaluation and ``hypervolume``, one value per evaluation each.
    """
    recipe = run.recipe
    judged = recipe.with_parent(read_parent_values(run))
    trials_of = {study_kind(s): [t for t in complete_trials(s) if "point" in t.user_attrs] for s in studies}
    points = {name: [point_from_trial(trial, name) for trial in trials] for name, trials in trials_of.items()}
    evaluated = [point for of_study in points.values() for point in of_study]
    if not evaluated:
        return {"reference": {}, "curves": []}
    reference = reference_point(evaluated, recipe.objectives)
    corner = minimized_values([Point(evaluated[0].subnet, reference)], recipe.objectives)[0]
    curves = []
    for name, trials in trials_of.items():
        progress, volumes = SearchProgress(judged, 0, HypervolumeReference(corner)), []
        for point in points[name]:
            progress.add(point)
            volumes.append(progress.hypervolume)
        times = [float(trial.user_attrs.get("search_s", 0.0)) for trial in trials]
        seconds = [time - min(times) for time in times]
        curves.append({"study": name, "seconds": seconds, "hypervolume": volumes})
    return {"reference": reference, "curves": curves}


def importance(studies: dict[str, optuna.Study]) -> dict[str, dict[str, float]]:
    """Objective -> parameter -> share of the variance it explains (fANOVA: Hutter et al., ICML 2014).

    It is computed from the random baseline, which covers the space evenly, or from the search if that has more trials.
    An objective that is the same in all trials has none.
    """
    study = max((studies[name] for name in ("random", "search")), key=lambda s: min(len(complete_trials(s)), 30))
    trials = complete_trials(study)[:IMPORTANCE_TRIALS]
    varied = {name for trial in trials for name in trial.params}
    if len(trials) < 10 or not varied:
        return {}
    names = enumerate(study.metric_names or [])
    vary = [(name, index) for index, name in names if len({trial.values[index] for trial in trials}) > 1]
    return {name: _explained(trials, study.directions, index) for name, index in vary}


def _explained(trials: Sequence[Any], directions: Sequence[Any], index: int) -> dict[str, float]:
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        copy = optuna.create_study(directions=list(directions))
        copy.add_trials(trials)
        evaluator = FanovaImportanceEvaluator(n_trees=TREES, seed=0)
        shares = get_param_importances(copy, evaluator=evaluator, target=lambda trial: trial.values[index])
        optuna.logging.set_verbosity(level)
    return {name: float(share) for name, share in shares.items()}


def losses(log: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Steps and losses of a training log."""
    entries = [entry for entry in log if "loss" in entry and "step" in entry]
    return {"step": [entry["step"] for entry in entries], "loss": [entry["loss"] for entry in entries]}


def predicted_vs_measured(
    studies: Iterable[optuna.Study], predictor: SubnetPredictor, verified: Sequence[Point], latency: str = "latency_ms"
) -> dict[str, Any]:
    """A predictor's held-out errors, and predicted and measured latencies of the verified subnetworks.

    Args:
        studies: With the predicted latencies.
        predictor: Predicts them.
        verified: With the measured ones.
        latency: Its name, that under the workload of the predictor.

    Returns:
        ``model``; ``mape_percent``: model or baseline -> held-out error; ``key``, ``predicted_ms``, ``measured_ms``:
        one value per verified subnetwork.
    """
    measured = {p.key: p.values[latency] for p in verified if p.source in STUDIES and latency in p.values}
    trials = [trial for study in studies for trial in complete_trials(study) if "point" in trial.user_attrs]
    points = {point.key: point for point in (point_from_trial(trial, "search") for trial in trials)}
    keys = [key for key in measured if latency in getattr(points.get(key), "values", {})]
    report = predictor.report
    return {
        "model": report.model,
        "mape_percent": {name: errors.mape_percent for name, errors in report.held_out.items()},
        "key": keys,
        "predicted_ms": [points[key].values[latency] for key in keys],
        "measured_ms": [measured[key] for key in keys],
    }

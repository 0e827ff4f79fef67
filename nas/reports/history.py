"""How a run came about: hypervolume as it grew, what mattered, training losses, and the predictor held to account."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nas.fronts.front import minimized_values, reference_point
from nas.fronts.point import Point
from nas.runs.files import read_json
from nas.runs.run import Run
from nas.studies.search_progress import Reference, Standing
from nas.studies.study import finished, open_studies, point_of, short_name
from predictors import SubnetPredictor

if TYPE_CHECKING:
    import optuna

IMPORTANCE_TRIALS = 300
"""Trials that importance is computed on; more change it little and take longer."""
TREES = 32


def history(run: Run, predictor: SubnetPredictor, verified: Sequence[Point]) -> dict[str, Any]:
    """Everything of a run that lies behind its front, as plain values.

    Returns:
        ``growth``: curves of `growth`; ``importance``: shares of `importance`; ``training``: stage -> logged losses;
        ``predictor``: see `predicted_vs_measured`.
    """
    studies = open_studies(run.study, run.recipe)
    logs = {stage.name: stage / "training.json" for stage in run.trained_folders}
    return {
        "growth": growth(run, studies.values()),
        "importance": importance(studies),
        "training": {name: losses(read_json(file)) for name, file in logs.items() if file.is_file()},
        "predictor": predicted_vs_measured(studies.values(), predictor, verified),
    }


def growth(run: Run, studies: Iterable[optuna.Study]) -> dict[str, Any]:
    """The hypervolume of each study after each of its evaluations, all from one reference.

    Returns:
        ``reference``: objective -> value; ``curves``: study, ``seconds`` since its first evaluation and
        ``hypervolume``, both one value an evaluation.
    """
    recipe = run.recipe
    told = {short_name(s): [t for t in finished(s) if "point" in t.user_attrs] for s in studies}
    points = {name: [point_of(trial, name) for trial in trials] for name, trials in told.items()}
    known = [point for found in points.values() for point in found]
    if not known:
        return {"reference": {}, "curves": []}
    reference = reference_point(known, recipe.objectives)
    corner = minimized_values([Point(known[0].subnet, reference)], recipe.objectives)[0]
    curves = []
    for name, trials in told.items():
        standing, volumes = Standing(recipe, 0, Reference(corner)), []
        for point in points[name]:
            standing.add(point)
            volumes.append(standing.volume)
        times = [float(trial.user_attrs.get("search_s", 0.0)) for trial in trials]
        seconds = [time - min(times) for time in times]
        curves.append({"study": name, "seconds": seconds, "hypervolume": volumes})
    return {"reference": reference, "curves": curves}


def importance(studies: dict[str, optuna.Study]) -> dict[str, dict[str, float]]:
    """Objective -> parameter -> share of its variance that the parameter explains (fANOVA: Hutter et al., ICML 2014).

    It is computed on the random baseline, which covers the space evenly, or on the search where that has too few.
    """
    study = max((studies[name] for name in ("random", "search")), key=lambda s: min(len(finished(s)), 30))
    trials = finished(study)[:IMPORTANCE_TRIALS]
    varied = {name for trial in trials for name in trial.params}
    if len(trials) < 10 or not varied:
        return {}
    names = study.metric_names or []
    return {name: _explained(trials, study.directions, index) for index, name in enumerate(names)}


def _explained(trials: Sequence[Any], directions: Sequence[Any], index: int) -> dict[str, float]:
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        part = optuna.create_study(directions=list(directions))
        part.add_trials(trials)
        evaluator = FanovaImportanceEvaluator(n_trees=TREES, seed=0)
        found = get_param_importances(part, evaluator=evaluator, target=lambda trial: trial.values[index])
        optuna.logging.set_verbosity(level)
    return {name: float(share) for name, share in found.items()}


def losses(log: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Steps and losses of a training."""
    entries = [entry for entry in log if "loss" in entry and "step" in entry]
    return {"step": [entry["step"] for entry in entries], "loss": [entry["loss"] for entry in entries]}


def predicted_vs_measured(
    studies: Iterable[optuna.Study], predictor: SubnetPredictor, verified: Sequence[Point]
) -> dict[str, Any]:
    """The predictor's held-out errors, and what it predicted of each subnetwork that was later measured.

    Returns:
        ``model``; ``mape_percent``: model or baseline -> held-out error; ``key``, ``predicted_ms``, ``measured_ms``:
        one value a verified subnetwork.
    """
    measured = {p.key: p.values["latency_ms"] for p in verified if p.source != "parent" and "latency_ms" in p.values}
    trials = [trial for study in studies for trial in finished(study) if "point" in trial.user_attrs]
    points = {point.key: point for point in (point_of(trial, "search") for trial in trials)}
    keys = [key for key in measured if "latency_ms" in getattr(points.get(key), "values", {})]
    report = predictor.report
    return {
        "model": report.model,
        "mape_percent": {name: errors.mape_percent for name, errors in report.held_out.items()},
        "key": keys,
        "predicted_ms": [points[key].values["latency_ms"] for key in keys],
        "measured_ms": [measured[key] for key in keys],
    }

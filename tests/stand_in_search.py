"""Searches over real studies whose evaluations are stand-ins, for tests of trials."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import optuna

from experiments.bench.stand_in import StandIn, stand_in_evaluator
from nas.recipe.schema import Recipe
from nas.studies.evaluator import Evaluator
from nas.studies.racing import Evaluate
from nas.studies.search_loop import EvaluationScheduler, build_queues, run_locally, study_fingerprint
from nas.studies.study import (
    bind_study,
    earlier_studies,
    open_repeats,
    open_studies,
)
from search_spaces import SearchSpace

CACHED: dict[str, tuple[SearchSpace, Evaluator]] = {}


def space_and_evaluator(recipe: Recipe) -> tuple[SearchSpace, Evaluator]:
    """A space over a tiny BERT and its costs, built once."""
    if not CACHED:
        CACHED["space"] = stand_in_evaluator(recipe, layers=4)
    space, cached = CACHED["space"]
    return space, Evaluator(recipe, cached.supernet, cached.examples, cached.predictors)


def new_scheduler(folder: Path, recipe: Recipe, driver: str | None = None) -> EvaluationScheduler:
    folder.mkdir(exist_ok=True)
    (space, evaluator), file = space_and_evaluator(recipe), folder / "study.log"
    studies = open_studies(file, recipe) | open_repeats(file, recipe)
    fingerprint = study_fingerprint(recipe, space, {})
    for study in studies.values():
        bind_study(study, fingerprint)
    earlier = earlier_studies(studies, fingerprint)
    return EvaluationScheduler(build_queues(studies, recipe, space, evaluator, driver, earlier))


def run(folder: Path, recipe: Recipe, evaluate: Evaluate | None = None) -> dict[str, optuna.Study]:
    """Runs a search with stand-ins; returns its studies, opened again."""
    scheduler = new_scheduler(folder, recipe)
    with scheduler.reporting():
        run_locally(scheduler, evaluate or StandIn(folder / "evaluations.log", 0.0))
    return open_studies(folder / "study.log", recipe)


def executed(folder: Path, what: str = "end") -> Counter[str]:
    """Key -> how often it was evaluated."""
    log = folder / "evaluations.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter(line.split()[1] for line in lines if line.startswith(what))


def states(study: optuna.Study) -> Counter[str]:
    return Counter(trial.state.name for trial in study.get_trials(deepcopy=False))


def changed(recipe: Recipe, **sections: object) -> Recipe:
    """The recipe with other sections."""
    return Recipe.parse({**recipe.model_dump(), **sections})

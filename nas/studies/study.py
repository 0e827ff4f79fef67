"""Studies of a run: the search and its baselines in one storage, each trial with the values of its subnetwork."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nas.fronts.point import Point
from nas.recipe.schema import MAX_SEED, Recipe
from nas.runs.files import write_text
from nas.runs.run import Run
from nas.studies.storage import open_read_only, open_storage
from search_spaces import InputError
from search_spaces.errors import DAMAGE, described

STUDIES = ("search", "uniform", "random")
"""The search and its baselines (law 6): uniform scaling, and random search at the same number of evaluations."""

REPEAT = "repeat"
"""What the names of the searches with other seeds begin with; a number follows."""

FINGERPRINT = "made_for"
"""User attribute of a study: what the values of its trials depend on."""

QUESTION = ("objectives", "constraints")
"""Parts of the fingerprint that values do not depend on, only how they are judged."""


def open_studies(path: Path, recipe: Recipe) -> dict[str, optuna.Study]:
    """The studies of a recipe by name, created if they do not exist.

    They are in the journal file, or in the recipe's ``search.storage`` under the name of the run's folder. A run that
    goes on with other objectives or constraints has studies of its own for them, next to the earlier ones.

    Raises:
        InputError: If the storage does not answer or is damaged.
    """
    return _open_all(path, recipe, STUDIES)


def open_repeats(path: Path, recipe: Recipe) -> dict[str, optuna.Study]:
    """The studies of the searches with other seeds, ``repeat1`` and so on; see `open_studies`."""
    return _open_all(path, recipe, [f"{REPEAT}{number}" for number in range(1, recipe.search.seeds)])


def repeat_seed(recipe: Recipe, number: int) -> int:
    """The seed of a repeated search."""
    return (recipe.seed + number) % (MAX_SEED + 1)


def _open_all(path: Path, recipe: Recipe, kinds: Iterable[str]) -> dict[str, optuna.Study]:
    url = recipe.search.storage
    storage = open_storage(url, path)
    prefix = "" if url is None else f"{path.resolve().parent.name}/"
    return {kind: _open(storage, prefix, kind, recipe) for kind in kinds}


def _open(storage: optuna.storages.BaseStorage, prefix: str, kind: str, recipe: Recipe) -> optuna.Study:
    """The first study of a kind if it is of these objectives and constraints, else the one that is named by them."""
    first = _load_or_create(storage, prefix + kind, recipe)
    if answers(first, recipe):
        return first
    return _load_or_create(storage, f"{prefix}{kind}-{_question(recipe)}", recipe)


def _load_or_create(storage: optuna.storages.BaseStorage, name: str, recipe: Recipe) -> optuna.Study:
    try:
        study = optuna.load_study(study_name=name, storage=storage)  # reads only: `create_study` would write first
    except KeyError:
        directions = list(recipe.objectives.values())
        study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
    if study.metric_names is None:
        study.set_metric_names(list(recipe.objectives))
    return study


def answers(study: optuna.Study, recipe: Recipe) -> bool:
    """Whether a study is of the objectives and constraints of a recipe."""
    constraints = study.user_attrs.get(FINGERPRINT, {}).get("constraints", recipe.constraints)
    return study.metric_names in (None, list(recipe.objectives)) and constraints == recipe.constraints


def _question(recipe: Recipe) -> str:
    """Ten hexadecimal digits that identify the objectives, in order, and the constraints."""
    text = json.dumps([list(recipe.objectives.items()), sorted(recipe.constraints.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def earlier_studies(studies: Mapping[str, optuna.Study], fingerprint: Mapping[str, Any]) -> list[optuna.Study]:
    """The studies of the same run with other objectives or constraints, whose values mean the same.

    Args:
        studies: Those of the run's recipe.
        fingerprint: What the values of their trials depend on.
    """
    current = {study.study_name for study in studies.values()}
    search = studies["search"]
    storage, run = search._storage, search.study_name.rpartition("/")[0]  # Optuna has no public name for it
    names = [study.study_name for study in storage.get_all_studies()]
    others = [name for name in names if name not in current and name.rpartition("/")[0] == run]
    kept = {name: value for name, value in fingerprint.items() if name not in QUESTION}
    return [
        study
        for study in (optuna.load_study(study_name=name, storage=storage) for name in others)
        if kept.items() <= study.user_attrs.get(FINGERPRINT, {}).items()
    ]


def bind_study(study: optuna.Study, fingerprint: Mapping[str, Any]) -> None:
    """Stores the fingerprint of a new study, or compares it with the stored one.

    Args:
        study: Of a run.
        fingerprint: What the values of its trials depend on.

    Raises:
        InputError: If the study belongs to another recipe, space, supernet or latency predictor.
    """
    stored = study.user_attrs.get(FINGERPRINT)
    if stored is None:
        study.set_user_attr(FINGERPRINT, dict(fingerprint))
        return
    for name in fingerprint:
        if stored.get(name) != fingerprint[name]:
            raise InputError(_wrong_study(study.study_name, name, fingerprint[name], stored.get(name)))


def _wrong_study(study: str, name: str, expected: Any, stored: Any) -> str:
    return (
        f"a study belongs to one recipe, space and supernet, but study `{study}` is of another `{name}` "
        f"({_shortened(stored)} against {_shortened(expected)}); give another folder with --run, or delete that study."
    )


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def driver_id(run: Path) -> str:
    """The id of the driver of a run in a storage that many drivers share; it is kept in the run's folder."""
    file = run / "driver"
    if not file.exists():
        write_text(file, uuid.uuid4().hex)
    return file.read_text()


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The study's complete trials, oldest first, not copied."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def search_seconds(study: optuna.Study) -> float:
    """Seconds that a study has taken so far, over all commands of the run."""
    return max((float(trial.user_attrs.get("search_s", 0.0)) for trial in complete_trials(study)), default=0.0)


def evaluated_points(study: optuna.Study, source: str | None = None) -> list[Point]:
    """The points that a study has evaluated, oldest first, each subnetwork once."""
    points: dict[str, Point] = {}
    for trial in complete_trials(study):
        if "point" in trial.user_attrs:
            point = point_from_trial(trial, source or study_kind(study))
            points.setdefault(point.subnet.key, point)
    return list(points.values())


def study_kind(study: optuna.Study) -> str:
    """One of `STUDIES`, or a repeated search: the name of a study without its run, objectives and constraints."""
    return study.study_name.rpartition("/")[2].partition("-")[0]


def point_from_trial(trial: FrozenTrial, source: str) -> Point:
    """The point of a complete trial; those of repeated searches are of the search.

    Raises:
        InputError: If it is not what this version writes.
    """
    try:
        source = "search" if source.startswith(REPEAT) else source
        return Point.from_dict({**trial.user_attrs["point"], "source": source})
    except DAMAGE as error:
        raise InputError(
            f"trial {trial.number} of the search must hold a subnetwork and its values, but does not "
            f"({described(error)}); if a later version wrote it, use that one, else move the study away: the search "
            "starts anew."
        ) from None


def standard_errors(point: Point, recipe: Recipe) -> list[float]:
    """The standard errors of a point's objectives; 0 for costs, which the sampler knows."""
    return [point.errors.get(name, 0.0) if name in recipe.metric_names else 0.0 for name in recipe.objectives]


def trials_csv(studies: Iterable[optuna.Study]) -> str:
    """Every trial of a run as CSV: study, number, state, key, values, violations, subnetwork, traceback."""
    import pandas as pd

    rows = [_row(study_kind(study), trial) for study in studies for trial in study.get_trials(deepcopy=False)]
    table = pd.DataFrame(rows, dtype=object)  # objects keep integers and booleans in columns with gaps
    return table.to_csv(index=False, lineterminator="\n")


def write_trials(path: Path, study_file: Path, recipe: Recipe) -> None:
    """Writes trials.csv from the studies."""
    studies = open_studies(study_file, recipe) | open_repeats(study_file, recipe)
    write_text(path, trials_csv(studies.values()))


def _row(study: str, trial: FrozenTrial) -> dict[str, Any]:
    row: dict[str, Any] = {"study": study, "number": trial.number, "state": trial.state.name}
    if "point" in trial.user_attrs:
        point = point_from_trial(trial, study)
        row |= {"key": point.subnet.key, **point.values, "feasible": point.feasible, "subnet": str(point.subnet)}
        row |= {f"violation:{name}": value for name, value in trial.constraints.items()}
    attributes = ("key", "examples", "cause", "failure")
    row |= {name: trial.user_attrs[name] for name in attributes if name in trial.user_attrs}
    return row


def observed_studies(run: Run, url: str | None = None) -> list[optuna.Study]:
    """The studies of a run's recipe for reading only; none if there are none yet.

    Args:
        run: The run.
        url: The database; default: the recipe's.

    Raises:
        InputError: If it is damaged or does not answer.
    """
    url = url or run.recipe.search.storage
    if url is None and not run.study.exists():
        return []
    storage = open_read_only(url, run.study)
    names = [name for study in storage.get_all_studies() if _is_of(run, name := study.study_name, url)]
    studies = [optuna.load_study(study_name=name, storage=storage) for name in names]
    return [study for study in studies if answers(study, run.recipe)]


def _is_of(run: Run, study: str, url: str | None) -> bool:
    """Whether a study is one of a run; a database may hold those of many."""
    return url is None or study.rpartition("/")[0] == run.name

"""Studies of a run: the search and its baselines in one storage, each trial with all that was found of it."""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from nas.fronts.point import Point
from nas.recipe.schema import Recipe
from nas.runs.files import write_text
from nas.runs.run import Run
from nas.studies.storage import open_storage
from search_spaces import InputError

STUDIES = ("search", "uniform", "random")
"""The search and its baselines (law 6): uniform scaling, and random search at the same number of evaluations."""

MADE_FOR = "made_for"
"""User attribute of a study: what its figures depend on."""


def open_studies(path: Path, recipe: Recipe) -> dict[str, optuna.Study]:
    """The studies of a run by name, made or found again.

    They are in the journal file, or in the recipe's ``search.storage`` under the name of the run's folder.
    """
    url = recipe.search.storage
    storage = open_storage(url, path)
    prefix = "" if url is None else f"{path.resolve().parent.name}/"
    return {name: _open(storage, prefix + name, recipe) for name in STUDIES}


def _open(storage: optuna.storages.BaseStorage, name: str, recipe: Recipe) -> optuna.Study:
    try:
        study = optuna.load_study(study_name=name, storage=storage)  # reads only: `create_study` would write first
    except KeyError:
        directions = list(recipe.objectives.values())
        study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
    names = list(recipe.objectives)
    if study.metric_names is None:
        study.set_metric_names(names)
    if study.metric_names != names:
        raise InputError(_of_another(name, "objectives", names, study.metric_names))
    return study


def claim(study: optuna.Study, made_for: Mapping[str, Any]) -> None:
    """Marks a new study with what its figures depend on.

    Raises:
        InputError: If it was made for something else: another recipe, space, supernet or latency predictor.
    """
    known = study.user_attrs.get(MADE_FOR)
    if known is None:
        study.set_user_attr(MADE_FOR, dict(made_for))
        return
    for name in made_for:
        if known.get(name) != made_for[name]:
            raise InputError(_of_another(study.study_name, name, made_for[name], known.get(name)))


def _of_another(study: str, what: str, mine: Any, theirs: Any) -> str:
    return (
        f"a study belongs to one recipe, space and supernet, but study `{study}` is of another `{what}` "
        f"({_short(theirs)} against {_short(mine)}); give another folder with --run, or delete that study."
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def driver_id(run: Path) -> str:
    """Who asks for trials in a storage that many drivers share: an identity kept in the run's folder."""
    file = run / "driver"
    if not file.exists():
        write_text(file, uuid.uuid4().hex)
    return file.read_text()


def finished(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """The study's trials in these states, oldest first, not copied."""
    return study.get_trials(deepcopy=False, states=states or (TrialState.COMPLETE,))


def points(study: optuna.Study, source: str | None = None) -> list[Point]:
    """What a study has evaluated, oldest first, each subnetwork once."""
    found: dict[str, Point] = {}
    for trial in finished(study):
        if "point" in trial.user_attrs:
            point = point_of(trial, source or short_name(study))
            found.setdefault(point.subnet.key, point)
    return list(found.values())


def short_name(study: optuna.Study) -> str:
    """One of `STUDIES`."""
    return study.study_name.rpartition("/")[2]


def point_of(trial: FrozenTrial, source: str) -> Point:
    """All that a finished trial found of its subnetwork."""
    return Point.from_dict({**trial.user_attrs["point"], "source": source})


def trials_csv(studies: Iterable[optuna.Study]) -> str:
    """Every trial of a run as CSV: study, number, state, key, figures, violations, subnetwork, traceback."""
    rows = [_row(short_name(study), trial) for study in studies for trial in study.get_trials(deepcopy=False)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write_trials(path: Path, study_file: Path, recipe: Recipe) -> None:
    """Writes trials.csv from the studies."""
    write_text(path, trials_csv(open_studies(study_file, recipe).values()))


def _row(study: str, trial: FrozenTrial) -> dict[str, Any]:
    row: dict[str, Any] = {"study": study, "number": trial.number, "state": trial.state.name}
    if "point" in trial.user_attrs:
        point = point_of(trial, study)
        row |= {"key": point.subnet.key, **point.values, "feasible": point.feasible, "subnet": str(point.subnet)}
        row |= {f"violation:{name}": value for name, value in trial.constraints.items()}
    row |= {name: trial.user_attrs[name] for name in ("key", "examples", "failure") if name in trial.user_attrs}
    return row


def open_read_only(run: Run) -> BaseStorage | None:
    """The studies' storage; a journal file is read without its lock and never mended."""
    if run.recipe.search.storage is not None:
        return open_storage(run.recipe.search.storage, run.study)
    return JournalStorage(JournalFileBackend(str(run.study))) if run.study.exists() else None

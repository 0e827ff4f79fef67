"""Studies of a run: one journal file, opened safely after any kill, and what was evaluated read back from it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from nas.config import Recipe
from nas.evaluator import Evaluator
from nas.point import Point
from nas.run import write_text
from search_spaces import InputError, SearchSpace, SubnetConfig

STUDIES = ("search", "uniform", "random")
"""The search and its baselines (law 6): uniform scaling, and random search at the same number of evaluations."""


def open_storage(path: Path) -> JournalStorage:
    """Optuna's journal file. What a killed process left half-written at its end is cut off first.

    Raises:
        InputError: If a line in the middle is not readable.
    """
    backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
    Path(f"{path}.lock").unlink(missing_ok=True)
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
    try:
        return JournalStorage(backend)
    except Exception as error:
        raise InputError(
            f"`{path}` is damaged ({type(error).__name__}: {error}); move it away and type the same command again to "
            "search anew, the supernet and the measurements are kept."
        ) from None


def open_study(path: Path, name: str, recipe: Recipe) -> optuna.Study:
    """One study of a run, made or found again. Trials that a killed process left running are closed as failed."""
    study = optuna.create_study(
        storage=open_storage(path),
        study_name=name,
        directions=list(recipe.objectives.values()),
        load_if_exists=True,
    )
    study.set_metric_names(list(recipe.objectives))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def record(study: optuna.Study, subnet: SubnetConfig, space: SearchSpace, evaluator: Evaluator) -> None:
    """Evaluates a given subnetwork and adds it to the study as a finished trial."""
    point = evaluator(subnet)
    study.add_trial(
        optuna.create_trial(
            values=[point.values[name] for name in evaluator.recipe.objectives],
            params=space.to_params(subnet),
            distributions=space.distributions(),
            constraints=evaluator.violations(point.values),
            user_attrs=_attributes(point),
        )
    )


def tell(study: optuna.Study, trial: optuna.Trial, point: Point, evaluator: Evaluator) -> None:
    """Finishes a trial that a sampler asked for with what was found of its subnetwork."""
    for name, violation in evaluator.violations(point.values).items():
        trial.set_constraint(name, violation)
    for name, value in _attributes(point).items():
        trial.set_user_attr(name, value)
    study.tell(trial, [point.values[name] for name in evaluator.recipe.objectives])


def _attributes(point: Point) -> dict[str, Any]:
    return {"key": point.subnet.key, "point": point.to_dict()}


def points(study: optuna.Study, source: str | None = None) -> list[Point]:
    """What a study has evaluated, oldest first, each subnetwork once."""
    found: dict[str, Point] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        point = Point.from_dict({**trial.user_attrs["point"], "source": source or study.study_name})
        found.setdefault(point.subnet.key, point)
    return list(found.values())


def trials_csv(studies: Iterable[optuna.Study]) -> str:
    """Every trial of a run as CSV: study, number, state, key, figures, violations, parameters, subnetwork."""
    rows = [_row(study.study_name, trial) for study in studies for trial in study.get_trials(deepcopy=False)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write_trials(path: Path, study_file: Path, recipe: Recipe) -> None:
    """Writes trials.csv from the studies."""
    write_text(path, trials_csv(open_study(study_file, name, recipe) for name in STUDIES))


def _row(study: str, trial: FrozenTrial) -> dict[str, Any]:
    row: dict[str, Any] = {"study": study, "number": trial.number, "state": trial.state.name}
    if "point" in trial.user_attrs:
        point = Point.from_dict(trial.user_attrs["point"])
        row |= {"key": point.subnet.key, **point.values, "feasible": point.feasible, "subnet": str(point.subnet)}
        row |= {f"violation:{name}": value for name, value in trial.constraints.items()}
    return row

"""`nas dashboard`: the studies of a run in optuna-dashboard, from a copy that shows violated constraints."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from nas.fronts.front import ParetoFront
from nas.runs.progress import print_line
from nas.runs.run import Run
from nas.studies.storage import trial_id
from nas.studies.study import complete_trials, observed_studies, point_from_trial
from predictors.measurement.onnx_export import require
from search_spaces import InputError
from search_spaces.svg import svg

if TYPE_CHECKING:
    from collections.abc import Sequence

DASHBOARD_CONSTRAINTS = "constraints"
"""The system attribute from which optuna-dashboard reads violations."""


def serve(run: Run, port: int, database: str | None = None) -> None:
    """Serves a copy of the studies on this machine until it is interrupted.

    Args:
        run: The run; nothing in it is changed.
        port: Port on this machine.
        database: URL of the database with its studies; default: the recipe's.

    Raises:
        InputError: If optuna-dashboard is missing or the run has no study yet.
    """
    require("optuna_dashboard", extra="dashboard", what="`nas dashboard`")
    from optuna_dashboard import run_server

    with tempfile.TemporaryDirectory() as folder:
        artifacts = FileSystemArtifactStore(folder)
        storage = copy_for_dashboard(run, artifacts, database)
        print_line(f"http://127.0.0.1:{port}  (stop with Ctrl-C)")
        run_server(storage, host="127.0.0.1", port=port, artifact_store=artifacts)


def copy_for_dashboard(run: Run, artifacts: FileSystemArtifactStore, database: str | None = None) -> BaseStorage:
    """The studies in memory, as optuna-dashboard reads them.

    Violations are in the attribute that it reads. A study with infeasible trials has a second copy of its feasible
    trials only, because the dashboard's best trials ignore constraints. Each trial on the front has a note and a
    picture of its subnetwork.

    Raises:
        InputError: If the run has no study yet.
    """
    studies = observed_studies(run, database)
    if not studies:
        raise InputError(f"`{run.folder}` has no study yet; `nas search` with its recipe creates one.")
    storage = InMemoryStorage()
    for study in studies:
        trials = complete_trials(study)
        _copy(run, storage, study.study_name, trials, artifacts)
        feasible = [trial for trial in trials if all(value <= 0 for value in trial.constraints.values())]
        if len(feasible) < len(trials):
            _copy(run, storage, f"{study.study_name}, feasible only", feasible, artifacts)
    return storage


def _copy(
    run: Run, storage: BaseStorage, name: str, trials: Sequence[FrozenTrial], artifacts: FileSystemArtifactStore
) -> None:
    from optuna_dashboard import save_note

    study = optuna.create_study(storage=storage, study_name=name, directions=list(run.recipe.objectives.values()))
    study.set_metric_names(list(run.recipe.objectives))
    points = {t.number: point_from_trial(t, "search") for t in trials if "point" in t.user_attrs}
    on_front = {point.key for point in ParetoFront.of(points.values(), run.recipe.objectives)}
    for trial in trials:
        violations = {DASHBOARD_CONSTRAINTS: list(trial.constraints.values())} if trial.constraints else {}
        study.add_trial(
            optuna.create_trial(
                state=TrialState.RUNNING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={n: v for n, v in trial.user_attrs.items() if n != "point"},
                system_attrs={**trial.system_attrs, **violations},
            )
        )
        copied = study.get_trials(deepcopy=False)[-1]
        point = points.get(trial.number)
        if point is not None and point.key in on_front:
            save_note(optuna.Trial(study, trial_id(copied)), f"`{point.key}` on the front: {point.subnet}")
            _attach(svg(point.subnet), f"{point.key}.svg", copied, storage, artifacts)
        storage.set_trial_state_values(trial_id(copied), TrialState.COMPLETE, trial.values)


def _attach(
    text: str, name: str, trial: FrozenTrial, storage: BaseStorage, artifacts: FileSystemArtifactStore
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_text(text)
        upload_artifact(artifact_store=artifacts, file_path=str(file), study_or_trial=trial, storage=storage)

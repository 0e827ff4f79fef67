"""Watch: how far a run has got, read from its folder while another process works on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import optuna

from nas.runs.progress import console
from nas.runs.run import Run
from nas.studies.search_progress import Reference, Standing
from nas.studies.study import STUDIES, finished, open_read_only, point_of, short_name

REFRESH_S = 2.0
REFERENCE_EVALUATIONS = 20
"""After how many evaluations the reference of the hypervolumes is set."""


def watch(run: Run, once: bool = False) -> None:
    """Prints where a run is, again and again until it has ended."""
    from rich.live import Live

    if once or not console.is_terminal:
        for line in status_lines(run):
            console.print(line)
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update("\n".join(status_lines(run)), refresh=True)
            if run.report.exists():
                return
            time.sleep(REFRESH_S)


def status_lines(run: Run) -> list[str]:
    """One line for each stage that is done or in work, and for each study that has begun."""
    found = [f"{stage.name:<10} {_state(stage)}" for stage in run.trained_folders]
    rows = run.measurements.read_bytes().count(b"\n") if run.measurements.exists() else 0
    done = any(run.predictor.glob("*")) if run.predictor.exists() else False
    found.append(f"{'profile':<10} {'done' if done else f'{rows} measured'}")
    found += [f"{name:<10} {note}" for name, note in study_status(run)]
    if run.verified.exists():
        verified = run.verified.read_bytes().count(b"\n")
        found.append(f"{'verify':<10} {verified} verified")
    if run.front_file.exists():
        found.append(f"{'front':<10} {len(run.front())} subnetworks, see nas show {run.folder}")
    return found


def _state(path: Path) -> str:
    """How far a training stage is, by its last checkpoint."""
    if path.exists():
        return "done"
    steps = path.with_name(f"{path.name}.partial").glob("checkpoints/checkpoint-*")
    last = max((int(step.name.split("-")[1]) for step in steps), default=None)
    if last is not None:
        return f"in training, past step {last}"
    return "begun" if path.with_name(f"{path.name}.partial").exists() else "not begun"


def study_status(run: Run) -> Iterator[tuple[str, str]]:
    """Study -> how many evaluations it has had and what they found."""
    storage = open_read_only(run)
    if storage is None:
        return
    reference = Reference()
    for known in storage.get_all_studies():
        study = optuna.load_study(study_name=known.study_name, storage=storage)
        short = short_name(study)
        told = [trial for trial in finished(study) if "point" in trial.user_attrs]
        if short not in STUDIES or not told:
            continue
        standing = Standing(run.recipe, min(REFERENCE_EVALUATIONS, len(told)), reference)
        for trial in told:
            standing.add(point_of(trial, short))
        yield short, f"{len(told)} evaluated · {standing.note()}"

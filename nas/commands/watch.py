"""`nas watch`: how far a run is, read from its folder while another process works on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from nas.pipeline import STAGES
from nas.runs.files import partial_path
from nas.runs.parent_values import read_parent_values
from nas.runs.progress import console
from nas.runs.run import Run
from nas.studies.search_progress import HypervolumeReference, SearchProgress
from nas.studies.study import STUDIES, complete_trials, observed_studies, point_from_trial, study_kind

REFRESH_S = 2.0
REFERENCE_EVALUATIONS = 20
"""Evaluations after which the reference point of the hypervolumes is fixed."""


def watch(run: Run, once: bool = False, storage: str | None = None) -> None:
    """Prints how far a run is; in a terminal, again and again until the run is finished.

    Args:
        run: The run; nothing in it is changed.
        once: Whether to print once.
        storage: URL of the database with its studies; default: the recipe's.
    """
    from rich.live import Live

    if once or not console.is_terminal:
        for line in status_lines(run, storage):
            console.print(line)
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update("\n".join(status_lines(run, storage)), refresh=True)
            if all(stage.is_done(run) for stage in STAGES):
                return
            time.sleep(REFRESH_S)


def status_lines(run: Run, storage: str | None = None) -> list[str]:
    """One line per stage, one more per study of the search, and where the front is."""
    lines = []
    for stage in STAGES:
        state = "done" if stage.is_done(run) else _progress(run, stage.name) or "not started"
        lines.append(f"{stage.name:<10} {state}")
        if stage.name == "search":
            lines += [f"  {name:<8} {status}" for name, status in study_status(run, storage)]
    if run.front_file.exists():
        lines.append(f"{'front':<10} {len(run.front())} subnetworks; nas show {run.folder} prints them")
    return lines


def _progress(run: Run, name: str) -> str:
    """What an unfinished stage has done so far; empty if nothing."""
    if name in ("parent", "supernet"):
        return _training_progress(run.folder / name)
    if name == "profile" and run.measurements.exists():
        measured = [len(target.store.rows(target.workload, "profile")) for target in run.targets]
        return f"{' + '.join(map(str, measured))} measured"
    if name == "search" and run.study.exists():
        return "started"
    if name == "verify" and run.verified.exists():
        return f"{_count_lines(run.verified)} scored"
    return ""


def _training_progress(folder: Path) -> str:
    """How far a training stage is, by its last checkpoint."""
    work = partial_path(folder)
    names = [checkpoint.name.partition("-")[2] for checkpoint in work.glob("checkpoints/checkpoint-*")]
    steps = [int(name) for name in names if name.isdecimal()]
    if steps:
        return f"in training, past step {max(steps)}"
    return "started" if work.exists() else ""


def _count_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n")


def study_status(run: Run, storage: str | None = None) -> Iterator[tuple[str, str]]:
    """Study -> its number of evaluations, its best metric and its hypervolume."""
    reference, recipe = HypervolumeReference(), run.recipe.with_parent(read_parent_values(run))
    for study in observed_studies(run, storage):
        name = study_kind(study)
        trials = [trial for trial in complete_trials(study) if "point" in trial.user_attrs]
        if name not in STUDIES or not trials:
            continue
        progress = SearchProgress(recipe, min(REFERENCE_EVALUATIONS, len(trials)), reference)
        for trial in trials:
            progress.add(point_from_trial(trial, name))
        yield name, f"{len(trials)} evaluated · {progress.summary()}"

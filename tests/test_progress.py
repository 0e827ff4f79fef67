"""Progress: a log has a plain line every few seconds, a terminal a bar; quick commands import no Trainer."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from nas.runs import progress as progress_module
from nas.runs.progress import Task, clock_text, progress, time_progress, waiting
from predictors.measurement.budget import Budget


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A console that is no terminal, with a line every hundredth of a second."""
    file = io.StringIO()
    monkeypatch.setattr(progress_module, "console", Console(file=file, width=200, highlight=False, soft_wrap=True))
    monkeypatch.setattr(progress_module, "LOG_EVERY_S", 0.01)
    return file


def wait_for(file: io.StringIO, text: str) -> None:
    waited = threading.Event()
    for _ in range(1000):
        if text in file.getvalue():
            return
        waited.wait(0.01)
    pytest.fail(f"no `{text}` in {file.getvalue()[-200:]!r}")


def test_a_log_has_plain_lines_with_steps_time_and_the_number_that_matters(log: io.StringIO) -> None:
    with progress("supernet") as report:
        report(3, 12, "loss 0.251")
        wait_for(log, "supernet   3/12 · 0:00 · 0:00 left · loss 0.251\n")
        report(12, 12, "loss 0.249")
    assert log.getvalue().endswith("supernet   12/12 · 0:00 · loss 0.249\n") and "\x1b" not in log.getvalue()


def test_the_innermost_of_nested_tasks_is_shown_and_then_the_outer_one_again(log: io.StringIO) -> None:
    with waiting("search"):
        wait_for(log, "search     0:00\n")
        with time_progress("profile", Budget(90, lambda: 0.0)) as report:
            report("round 7 of 40 models")
            wait_for(log, "profile    0:00 · 1:30 left · round 7 of 40 models\n")
        before = len(log.getvalue())
        wait_for(log, "search     0:00\n")
        assert "search" in log.getvalue()[before:] or wait_for(log, "search") is None


def test_the_time_left_is_that_of_the_budget() -> None:
    now = [0.0]
    task = Task("verify", Budget(100, lambda: now[0]))
    now[0] = 75.0
    assert (task.fraction, task.left) == (0.75, 25.0) and "1:15 · 0:25 left" in task.line
    assert Task("verify", Budget(None)).left is None and clock_text(3723) == "1:02:03"


def test_a_bar_in_a_terminal_moves_without_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    monkeypatch.setattr(progress_module, "console", console)
    monkeypatch.setattr(progress_module, "REFRESHES_PER_SECOND", 50.0)
    with waiting("imports"):
        length = len(file.getvalue())
        for _ in range(1000):
            if len(file.getvalue()) > length + 200:
                break
            threading.Event().wait(0.01)
        assert len(file.getvalue()) > length + 200
    assert progress_module.REFRESHES_PER_SECOND >= 0.5  # or a bar could stand still for over two seconds
    assert re.search("imports", file.getvalue())


IMPORTS = """
import json, sys
from nas.cli import app
unused = {}
for arguments in json.loads(sys.argv[1]):
    app(arguments, standalone_mode=False)
    heavy = ("torch", "optuna") if arguments[0] == "show" else ()
    names = ("transformers.trainer", "datasets", "ray", *heavy)
    unused[arguments[0]] = [name for name in names if name in sys.modules]
print("imported: " + json.dumps(unused))
"""


def test_show_export_and_bench_import_no_trainer_no_datasets_no_ray(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, run = map(str, finished)
    out = str(tmp_path / "out")
    commands = [
        ["show", run],
        ["export", run, "--out", out],
        ["bench", out, "--workload", recipe, "--minutes", "0.01"],
    ]
    process = subprocess.run(
        [sys.executable, "-c", IMPORTS, json.dumps(commands)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.returncode == 0, process.stderr[-2000:]
    imported = json.loads(process.stdout.rpartition("imported: ")[2])
    assert imported == {"show": [], "export": [], "bench": []}

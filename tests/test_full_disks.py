"""Law 9 for disks: full or read-only ones are named in one line, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import Command
from refusals import SEARCHED, Refused, contents, one_line

from nas.cli import app


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small disk of its own, of any size and then of another."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size: str) -> Path:
        options = f"size={size}" + (",remount" if os.path.ismount(folder) else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("only root may mount a small disk")
        return folder

    if os.geteuid():
        pytest.skip("only root may mount a small disk")
    yield resize
    if os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # weights may still be mapped


def test_a_file_system_that_is_read_only(
    finished: tuple[Path, Path], disk: Callable[[str], Path], refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run on it can be read, and nothing can be written; one line says so."""
    recipe, other = finished
    place = disk("64m")
    shutil.copytree(other, place / "run")
    export = next((place / "run" / "exports").glob("[!.]*"))
    before = contents(place)
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    try:
        for words in (["show", place / "run"], ["watch", place / "run", "--once"]):
            app([str(word) for word in words], standalone_mode=False)
        assert "front" in capsys.readouterr().out
        for run in ("run", "new", "new/run"):
            refused("search", recipe, "--run", place / run, says=(str(place),))
        refused("export", place / "run", "--out", place / "new", says=("--out", str(place)))
        refused("compare", place / "run", other, "--out", place / "plot.html", says=("Read-only",))
        refused("convert", export, "--to", "onnx")
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
    assert contents(place) == before


STAGES: dict[str, tuple[str, ...]] = {
    "parent": (),
    "supernet": ("parent",),
    "profile": ("parent", "supernet"),
    "search": ("parent", "supernet", "measurements.jsonl", "predictor"),
    "verify": ("parent", "supernet", "measurements.jsonl", "predictor", *SEARCHED[:2]),
    "report": ("parent", "supernet", "measurements.jsonl", "predictor", *SEARCHED[:4]),
    "export": ("parent", "supernet", "measurements.jsonl", "predictor", *SEARCHED),
}
"""Stage -> what the stages before it have written."""


@pytest.mark.full
@pytest.mark.parametrize("free_kb", [8, 200])
@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_is_full_in_any_stage(
    stage: str, free_kb: int, finished: tuple[Path, Path], disk: Callable[[str], Path]
) -> None:
    recipe, other = finished
    place = disk("64m")
    run = place / "run"
    for name in ("recipe.yaml", "environment.json", *STAGES[stage]):
        run.mkdir(exist_ok=True)
        copy = shutil.copytree if (other / name).is_dir() else shutil.copy2
        copy(other / name, run / name)
    before, used = contents(run), shutil.disk_usage(place).used
    disk(f"{used // 1024 + free_kb}k")
    stopped = Command("search", recipe, "--run", run)
    stderr = stopped.communicate()[1]
    if stopped.returncode != 0:
        one_line(stopped.returncode, stderr, ("disk", "ree some space"))
    after = contents(run)
    assert all(after[name][: len(data)] == data for name, data in before.items())
    disk("64m")
    again = Command("search", recipe, "--run", run)
    stderr = again.communicate(timeout=900)[1]
    assert again.returncode == 0, stderr
    assert any((run / "exports").iterdir()) and not list(run.glob("*.partial"))
    for name, data in after.items():
        if name.endswith(".jsonl"):  # a line that the full disk cut short is written again, whole ones are not
            assert (run / name).read_bytes().startswith(data[: data.rfind(b"\n") + 1]), name


@pytest.mark.parametrize(
    ("size", "done"),
    [
        pytest.param("4k", (), marks=pytest.mark.full),
        pytest.param("700k", (), marks=pytest.mark.full),
        pytest.param("900k", ("parent",), marks=pytest.mark.slow),
        ("800k", ("parent", "supernet", "measurements.jsonl", "predictor")),
        pytest.param(
            "2m", ("parent", "supernet", "measurements.jsonl", "predictor", *SEARCHED[:4]), marks=pytest.mark.slow
        ),
    ],
)
def test_a_full_disk(
    size: str, done: tuple[str, ...], finished: tuple[Path, Path], disk: Callable[[str], Path]
) -> None:
    recipe, other = finished
    run = disk(size) / "run"
    for name in ("recipe.yaml", "environment.json", *done) if done else ():
        run.mkdir(exist_ok=True)
        copy = shutil.copytree if (other / name).is_dir() else shutil.copy2
        copy(other / name, run / name)
    before = contents(run)
    stopped = Command("search", recipe, "--run", run)
    stderr = stopped.communicate()[1]
    one_line(stopped.returncode, stderr, ("disk is full", "Free some space"))
    after = contents(run)
    assert all(after[name][: len(data)] == data for name, data in before.items())
    disk("64m")
    run.mkdir(exist_ok=True)
    shutil.copy(other / "measurements.jsonl", run)  # what takes longest
    again = Command("search", recipe, "--run", run)
    stderr = again.communicate()[1]
    assert again.returncode == 0, stderr
    assert any((run / "exports").iterdir()) and not list(run.glob("*.partial"))

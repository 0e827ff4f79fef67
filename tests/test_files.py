"""Files that are not ours are never touched; what is written is whole or not there; the command line around it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from refusals import Refused, contents

from nas.commands import entry
from nas.commands.entry import mendable, run_command
from nas.recipe.schema import Recipe
from nas.runs import files
from nas.runs.files import only_writer, replace_folder, write_text
from nas.runs.progress import print_line
from nas.runs.run import Run
from search_spaces import InputError

# -- folders and files of others ----------------------------------------------------------------------------------

FOREIGN: dict[str, dict[str, str]] = {
    "exports and a report": {"exports/model/weights": "mine", "report.html": "mine", "trials.csv": "mine"},
    "a hidden note": {".notes.tmp": "mine"},
    "a recipe": {"recipe.yaml": "model: mine"},
    "an environment": {"environment.json": "{}"},
    "both, of another program": {"recipe.yaml": "model: mine", "environment.json": "[]"},
    "a folder": {"empty/.keep": ""},
}


def fill(folder: Path, named: dict[str, str]) -> None:
    for name, text in named.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize("case", FOREIGN)
def test_a_folder_that_is_neither_empty_nor_a_run(
    case: str,
    text_recipe: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    fill(tmp_path / "mine", FOREIGN[case])
    before = contents(tmp_path)
    refused("search", text_recipe, "--run", tmp_path / "mine", says=(str(tmp_path / "mine"),))
    assert contents(tmp_path) == before


def test_a_new_run_goes_into_an_empty_folder_or_what_a_kill_left_of_one(text_recipe: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(text_recipe)
    (tmp_path / "empty").mkdir()
    Run.open(tmp_path / "empty", recipe)
    (tmp_path / "empty" / "recipe.yaml").rename(tmp_path / "empty" / ".recipe.yaml.7.tmp")
    Run.open(tmp_path / "empty", recipe)
    assert not recipe.differences(Run(tmp_path / "empty").recipe)


def test_a_run_that_cannot_be_created_leaves_nothing(
    text_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nas.runs.run.write_text", full)
    with pytest.raises(OSError):
        Run.open(tmp_path / "run", Recipe.load(text_recipe))
    assert not contents(tmp_path / "run")


def test_a_run_follows_a_model_and_data_that_were_moved(text_recipe: Path, tmp_path: Path) -> None:
    Run.open(tmp_path / "run", Recipe.load(text_recipe))
    copied = Path(shutil.copytree(text_recipe.parent, tmp_path / "elsewhere")) / text_recipe.name
    with pytest.raises(InputError, match="another recipe"):
        Run.open(tmp_path / "run", Recipe.load(copied))  # the old ones are there still
    shutil.rmtree(text_recipe.parent)
    run = Run.open(tmp_path / "run", Recipe.load(copied))
    assert run.recipe.task.train == str(copied.parent / "train.parquet") and Path(run.recipe.model).is_dir()
    with pytest.raises(InputError, match="another recipe"):
        Run.open(tmp_path / "run", Recipe.load(copied, ["task.train=test.csv", "task.label=stars"]))


def test_leftovers_of_a_run_go_and_nothing_else(text_recipe: Path, tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run", Recipe.load(text_recipe))
    mine = {".notes.tmp": "mine", ".report.tmp": "mine", "exports/mine/notes": "mine", "exports/notes": "mine"}
    fill(run.folder, {**mine, ".front.json.12.tmp": "half", "exports/0123456789/subnet.json": "{}"})
    with run.locked():
        pass
    with run.building(run.parent):
        pass
    assert contents(run.folder).keys() == {*mine, "recipe.yaml", "environment.json"}


@pytest.mark.parametrize("place", ["a file", "below a file", "too long", "a dangling link"])
@pytest.mark.parametrize("command", ["search", "export plan"])
def test_places_where_nothing_can_be_written(
    place: str,
    command: str,
    text_recipe: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "file" / "x")
    places = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "run",
        "too long": tmp_path / ("x" * 300),
        "a dangling link": tmp_path / "link",
    }
    before = contents(tmp_path)
    words = ("search", text_recipe) if command == "search" else ("profile", text_recipe, "--export", tmp_path / "out")
    refused(*words, "--run", places[place])
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "words",
    [
        ("search", "{recipe}", "--run", ""),
        ("show", ""),
        ("watch", " "),
        ("compare", "{recipe}", ""),
        ("export", "{recipe}", "--out", ""),
        ("profile", "{recipe}", "--import", ""),
        ("init", "model", "--out", ""),
    ],
)
def test_an_empty_path_is_not_the_working_directory(
    words: tuple[str, ...],
    text_recipe: Path,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused(*(word.format(recipe=text_recipe) for word in words), says=("a path must be given",))
    assert not contents(tmp_path / "here")


@pytest.mark.parametrize("port", ["0", "70000", "-1", "x"])
def test_a_port_that_cannot_be(port: str, tmp_path: Path, refused: Refused) -> None:
    refused("dashboard", tmp_path, "--port", port, says=("--port",))


# -- whole or not at all ------------------------------------------------------------------------------------------


def test_a_target_that_is_no_regular_file_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "pipe", tmp_path / "folder", Path("/dev/null")):
        before = target.stat()
        with pytest.raises(InputError, match="must be a regular one"):
            write_text(target, "new")
        assert (target.stat().st_ino, target.stat().st_mode) == (before.st_ino, before.st_mode)
    assert not list(tmp_path.glob(".*"))


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "file").read_text() == "new"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "file", "old")
    (tmp_path / ".file.tmp").write_text("mine")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError):
        write_text(tmp_path / "file", "new")
    assert contents(tmp_path) == {"file": b"old", ".file.tmp": b"mine"}


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    fill(tmp_path / "model", {"weights": "old"})
    with pytest.raises(OSError):
        replace_folder(tmp_path / "missing", tmp_path / "model")
    assert contents(tmp_path) == {"model/weights": b"old"}
    fill(tmp_path / "work", {"weights": "new"})
    replace_folder(tmp_path / "work", tmp_path / "model")
    assert contents(tmp_path) == {"model/weights": b"new"}


def test_two_writers_of_one_folder(tmp_path: Path) -> None:
    first, second = only_writer(tmp_path / "out"), only_writer(tmp_path / "out")
    with first, pytest.raises(InputError, match="another process is writing"), second:
        pass
    assert not contents(tmp_path)


# -- around every command -----------------------------------------------------------------------------------------


def command_that(do: Callable[[], Any]) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(lambda: do())
    return app


def ends(do: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> object:
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["nas", *[]])
    monkeypatch.setattr(entry.sys, "argv", ["nas", "--"])
    with pytest.raises(SystemExit) as stop:
        run_command(command_that(do))
    return stop.value.code


def raises(error: BaseException) -> Callable[[], None]:
    def do() -> None:
        raise error

    return do


MENDABLE = {
    "permission denied": PermissionError(errno.EACCES, "Permission denied", "/there"),
    "read-only": OSError(errno.EROFS, "Read-only file system", "/there"),
    "too long": OSError(errno.ENAMETOOLONG, "File name too long", "/" + "x" * 5000),
    "below a file": NotADirectoryError(errno.ENOTDIR, "Not a directory", "/there"),
    "port taken": OSError(errno.EADDRINUSE, "Address already in use"),
    "full": OSError(errno.ENOSPC, "No space left on device"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "full database": RuntimeError("(sqlite3.OperationalError) database or disk is full"),
    "memory": MemoryError(),
}


@pytest.mark.parametrize("case", MENDABLE)
def test_what_a_user_can_mend_is_one_line(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(raises(MENDABLE[case]), monkeypatch) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1 and len(stderr) < 500 and "Traceback" not in stderr
    assert mendable(ValueError("x")) == ""


def test_a_bug_has_its_traceback_and_says_where_to_report_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(raises(KeyError("postgresql://me:s3cret@host")), monkeypatch) == 1
    *traceback, line = capsys.readouterr().err.splitlines()
    assert traceback[0].startswith("Traceback") and "KeyError" in traceback[-1]
    assert "is a bug" in line and "Please report" in line and "Nothing that was finished is lost" in line
    assert "s3cret" not in "".join(traceback)


def test_secrets_are_in_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    error = InputError("`mysql://tok3n@host/db?password=s3cret` and `postgresql://me:p4ss@host` fail")
    assert ends(raises(error), monkeypatch) == 2
    stderr = capsys.readouterr().err
    assert not any(secret in stderr for secret in ("tok3n", "s3cret", "p4ss")) and "***" in stderr


def test_sigterm_stops_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    previous = signal.getsignal(signal.SIGTERM)
    try:
        assert ends(lambda: signal.raise_signal(signal.SIGTERM), monkeypatch) == 2
        heard: list[int] = []
        monkeypatch.setattr(signal, "getsignal", lambda number: lambda number, frame: heard.append(number))
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGINT], "a search handles Ctrl-C itself: evaluations in flight finish"
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert capsys.readouterr().err == "nas: stopped; run the same command again to resume.\n"


def test_a_thread_may_run_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[object] = []
    thread = threading.Thread(target=lambda: codes.append(ends(raises(InputError("no")), monkeypatch)))
    thread.start()
    thread.join()
    assert codes == [2]


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "from nas.cli import main; import sys; sys.argv[1:] = ['schema']; main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait()


def test_output_of_another_encoding_shows_what_it_can() -> None:
    code = (
        "import sys, typer; from nas.commands.entry import run_command; from nas.runs.progress import print_line;"
        "app = typer.Typer(); app.command()(lambda: print_line('5.2 \u2248 \u00b1')); sys.argv[1:] = ['--'];"
        "run_command(app)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"5.2 ? \xb1\n", b"")


def test_brackets_in_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_line("runs/[a]/[/red]/:bug:")
    print_line("red\x1b[31m")
    assert capsys.readouterr().out == "runs/[a]/[/red]/:bug:\nred?[31m\n"


def test_no_command_asks_about_code(
    text_folder: Path,
    text_recipe: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    """Where transformers would ask and wait, a model with a class of its own is refused."""
    (text_folder / "model" / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoConfig": "x.Config"}}')
    (text_folder / "model" / "x.py").write_text("raise SystemExit(7)")
    refused("search", text_recipe, "--run", tmp_path / "run", says=("trust_remote_code",))
    import transformers.dynamic_module_utils as module

    assert module.TIME_OUT_REMOTE_CODE == 0

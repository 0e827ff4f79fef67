"""Storage of a run's studies: Optuna's journal file, or a database or gRPC proxy by URL, with retries."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import optuna
import tenacity
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial

from search_spaces import InputError

RETRY_TIMEOUT_S = 60.0
"""For how long a call is repeated while the database does not answer."""

CREATE_TIMEOUT_S = 10.0
"""How long to wait for the tables of a database that another driver is creating."""

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
            the environment, so that a recipe need not contain a password.
        path: The journal file that is used if there is no URL.

    Raises:
        InputError: If it cannot be opened, or the journal file is damaged before its last line.
    """
    return _open_journal(path) if url is None else _with_retries(_connect(os.path.expandvars(url)), url)


def _open_journal(path: Path) -> BaseStorage:
    """The journal file, without the half-written last line that a killed process may have left."""
    Path(f"{path}.lock").unlink(missing_ok=True)
    data = path.read_bytes() if path.exists() else b""
    if data and not data.endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
    try:
        return BatchedJournalStorage(path)
    except Exception as error:
        raise InputError(
            f"`{path}` is damaged ({type(error).__name__}: {error}); move it away and type the same command again: "
            "the search starts anew, the supernet and the measurements are kept."
        ) from None


def _connect(url: str) -> BaseStorage:
    scheme, _, address = url.partition("://")
    try:
        if scheme == "grpc":
            from optuna.storages import GrpcStorageProxy

            host, _, port = address.rpartition(":")
            proxy = GrpcStorageProxy(host=host, port=int(port))
            proxy.get_all_studies()
            return proxy
        return _open_database(url)
    except ImportError as error:
        package = DRIVER_PACKAGES.get(scheme.partition("+")[0], "the driver of that database")
        raise InputError(f"`search.storage` needs `pip install {package}` ({error}).") from None
    except Exception as error:
        raise InputError(
            f"`search.storage` must be a database that answers, but `{without_password(url)}` does not "
            f"({short_error(error)}); check the URL and that its server runs."
        ) from None


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


def _with_retries(storage: BaseStorage, url: str) -> BaseStorage:
    """The storage, each of whose calls is repeated while the database does not answer."""

    def give_up(state: tenacity.RetryCallState) -> NoReturn:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        raise InputError(
            f"`search.storage` must answer, but `{without_password(url)}` has not for {RETRY_TIMEOUT_S:.0f} s "
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

    code = getattr(error, "code", None)
    is_grpc = callable(code) and getattr(code(), "name", "") in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN")
    return is_grpc or isinstance(error, StorageInternalError) or "OperationalError" in type(error).__name__


def without_password(url: str) -> str:
    """A URL without its password."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def short_error(error: BaseException) -> str:
    """The innermost cause of an error in one short line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"

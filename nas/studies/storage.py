"""Storage of a run's studies: Optuna's journal file, or a database or gRPC proxy by URL, with patience for it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from search_spaces import InputError

PATIENCE_S = 60.0
"""How long a database that has gone away is waited for."""

MAKING_S = 10.0
"""How long the tables of a database are waited for while another driver makes them."""

DRIVERS = {"postgresql": "psycopg[binary]", "mysql": "mysqlclient", "grpc": "grpcio"}
"""Scheme of a URL -> what to install if it cannot be spoken."""


class Journal(JournalFileBackend):
    """Optuna's journal file, in which everything that one ask or one tell records is one write."""

    def __init__(self, path: Path) -> None:
        self._guard = JournalFileOpenLock(str(path))
        super().__init__(str(path), lock_obj=self._guard)
        self._held: list[dict[str, Any]] | None = None
        self._taken = 0
        self._applied = 0

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Writes records at once, or holds them inside `together`."""
        if self._held is None:
            super().append_logs(logs)
        else:
            self._held += logs

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Records from a number on; inside `together`, those held that were not read yet."""
        self._applied = log_number_from
        for log in super().read_logs(log_number_from) if self._held is None else self._fresh(self._held):
            self._applied += 1
            yield log

    def _fresh(self, held: list[dict[str, Any]]) -> list[dict[str, Any]]:
        fresh, self._taken = held[self._taken :], len(held)
        return fresh

    @contextmanager
    def together(self, storage: JournalStorage, durable: bool) -> Iterator[None]:
        """Holds the file's lock and all records of the block, and writes them with one write at its end."""
        self._guard.acquire()
        try:
            storage.get_all_studies()  # reads what others wrote before the lock
            self._held, self._taken, first = [], 0, self._applied
            try:
                yield
            finally:
                storage.get_all_studies()
                logs, self._held = self._held, None
                if logs:
                    self._write(first, logs, durable)
        finally:
            self._guard.release()

    def _write(self, first: int, logs: list[dict[str, Any]], durable: bool) -> None:
        with open(self._file_path, "ab") as file:
            file.write("".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode())
            file.flush()
            if durable:
                os.fsync(file.fileno())
            self._log_number_offset[first + len(logs)] = file.tell()


def together(storage: BaseStorage, *, durable: bool) -> AbstractContextManager[None]:
    """A block whose records a journal file gets in one write; other storages write them one by one.

    Args:
        storage: Of a study.
        durable: Whether the block must outlive a power cut too. A killed process loses nothing either way.
    """
    backend = getattr(storage, "_backend", None)
    if isinstance(storage, JournalStorage) and isinstance(backend, Journal):
        return backend.together(storage, durable)
    return nullcontext()


def open_storage(url: str | None, path: Path) -> BaseStorage:
    """The storage of a recipe's ``search.storage``, or the journal file of a run.

    Args:
        url: ``postgresql://…``, ``mysql://…``, ``sqlite:///…`` or ``grpc://host:port``; ``$NAME`` in it is read from
            the environment, so that a password need not stand in a recipe.
        path: The journal file where there is no URL.

    Raises:
        InputError: If it cannot be opened, or the journal file is damaged before its last line.
    """
    return _journal(path) if url is None else _patient(_connect(os.path.expandvars(url)), url)


def _journal(path: Path) -> BaseStorage:
    """Optuna's journal file. What a killed process left half-written at its end is cut off first."""
    Path(f"{path}.lock").unlink(missing_ok=True)
    journal = Journal(path)
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
    try:
        return JournalStorage(journal)
    except Exception as error:
        raise InputError(
            f"`{path}` is damaged ({type(error).__name__}: {error}); move it away and type the same command again to "
            "search anew, the supernet and the measurements are kept."
        ) from None


def _connect(url: str) -> BaseStorage:
    scheme, _, place = url.partition("://")
    try:
        if scheme == "grpc":
            from optuna.storages import GrpcStorageProxy

            host, _, port = place.rpartition(":")
            proxy = GrpcStorageProxy(host=host, port=int(port))
            proxy.get_all_studies()
            return proxy
        return _relational(url)
    except ImportError as error:
        driver = DRIVERS.get(scheme.partition("+")[0], "the driver of that database")
        raise InputError(f"`search.storage` needs `pip install {driver}` ({error}).") from None
    except Exception as error:
        raise InputError(
            f"`search.storage` must be a database that answers, but `{hidden(url)}` does not ({brief(error)}); check "
            "the URL and that its server runs."
        ) from None


def _relational(url: str) -> BaseStorage:
    """A database; where another driver is making its tables at this moment, once they are there."""
    from optuna.storages import RDBStorage, get_storage
    from sqlalchemy.exc import DBAPIError

    deadline = time.monotonic() + MAKING_S
    while True:
        try:
            return get_storage(RDBStorage(url, engine_kwargs={"pool_pre_ping": True}))
        except DBAPIError as error:
            if "already exist" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def hidden(url: str) -> str:
    """A URL without its password."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def brief(error: BaseException) -> str:
    """The innermost cause of an error in one short line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _patient(storage: BaseStorage, url: str) -> BaseStorage:
    """The storage, each of whose calls waits for a database that has gone away."""
    for name in dir(BaseStorage):
        if not name.startswith("_") and callable(getattr(storage, name)):
            setattr(storage, name, _retried(getattr(storage, name), url))
    return storage


def _retried(call: Callable[..., Any], url: str) -> Callable[..., Any]:
    @wraps(call)
    def patient(*args: Any, **kwargs: Any) -> Any:
        deadline, pause = time.monotonic() + PATIENCE_S, 0.1
        while True:
            try:
                return call(*args, **kwargs)
            except Exception as error:
                if not _is_away(error):
                    raise
                if time.monotonic() + pause > deadline:
                    raise InputError(
                        f"`search.storage` must answer, but `{hidden(url)}` has not for {PATIENCE_S:.0f} s "
                        f"({brief(error)}); what was told is kept. Type the same command again once it is back."
                    ) from None
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    return patient


def _is_away(error: Exception) -> bool:
    """Whether an error says that a database or proxy does not answer."""
    from optuna.exceptions import StorageInternalError

    code = getattr(error, "code", None)
    unavailable = callable(code) and getattr(code(), "name", "") in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN")
    return unavailable or isinstance(error, StorageInternalError) or "OperationalError" in type(error).__name__

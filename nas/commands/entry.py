"""What surrounds every command: its output, its signals, and each error as one line."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import typer
import wrapt

from nas.recipe.secrets import without_secrets
from search_spaces.errors import InputError

UsageError = typer.BadParameter.__mro__[1]
INTERRUPTED = 130
"""The exit code that typer returns after Ctrl-C."""

USER_ERRNOS = frozenset(
    (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.EIO,
        errno.ESTALE,
        errno.EMFILE,
        errno.ENFILE,
        errno.EBUSY,
        errno.EADDRINUSE,
        errno.EADDRNOTAVAIL,
        errno.ENXIO,
        errno.EFBIG,
    )
)
"""Errors of the operating system that a user mends: another place, other rights, another port."""

FULL_DISK = ("No space left", "iostream error", "unexpected pos", "disk is full", "Disk quota exceeded")
"""Texts of errors if a disk is full; `torch.save` only reports that a stream could not be written."""

LONGEST_LINE = 1200
"""Characters of a message; of a longer one the middle is left out."""

BUG = (
    "this is a bug of paretoformer. Nothing that was finished is lost: the same command resumes. Please report the "
    "lines above, the command and the recipe where CONTRIBUTING.md says, in its issue tracker."
)


def run_command(app: typer.Typer) -> None:
    """Runs the command line.

    What the user can mend is printed in one line, with exit code 2; after Ctrl-C or SIGTERM, how to resume. Anything
    else is a bug: its traceback, and where to report it, with exit code 1.
    """
    _write_any_text()
    _stop_on_sigterm()
    wrapt.when_imported("transformers.dynamic_module_utils")(_ask_nothing)
    for name in ("torchao", "torch.utils._pytree"):  # both warn on import; torchao comes with ExecuTorch
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)  # torch resets the level
    try:
        stopped = app(sys.argv[1:] or ["--help"], prog_name="nas", standalone_mode=False) == INTERRUPTED
        sys.stdout.flush()
    except UsageError as error:  # type: ignore[misc]
        fail(f"{error.format_message()} See `nas --help`.")
    except InputError as error:
        fail(str(error))
    except BrokenPipeError:
        _leave_closed_pipe()
    except KeyboardInterrupt:
        stopped = True
    except Exception as error:
        if message := mendable(error):
            fail(message)
        print(without_secrets(traceback.format_exc()), file=sys.stderr, end="")
        fail(BUG, code=1)
    if stopped:
        fail("stopped; run the same command again to resume.")


def mendable(error: BaseException) -> str:
    """What the user can do about an error of the operating system; empty for any other error."""
    chain = list(chain_of(error))
    if any(map(is_full_disk, chain)):
        return "the disk is full; finished results are kept. Free some space and run the same command again."
    if any(isinstance(each, MemoryError) for each in chain):
        return "the memory is full; finished results are kept. Free some, or lower a batch size or `task.max_length`."
    for each in chain:
        if isinstance(each, OSError) and each.errno in USER_ERRNOS:
            path = f" `{str(each.filename)[:200]}`" if each.filename is not None else ""
            return (
                f"the operating system must allow{path or ' this'}, but says: {each.strerror or each}; nothing that "
                "was finished is lost. Choose another place, or change the rights, and run the same command again."
            )
    return ""


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_full_disk(error: BaseException) -> bool:
    """Whether an error means a full disk."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or any(text in str(error) for text in FULL_DISK)


def fail(message: str, code: int = 2) -> NoReturn:
    """Prints one line to standard error, without secrets, and exits."""
    line = " ".join(without_secrets(message).split())
    middle = f" ... {line[-LONGEST_LINE // 3 :]}" if len(line) > LONGEST_LINE else ""
    print(f"nas: {line[: LONGEST_LINE - len(middle)]}{middle}", file=sys.stderr)
    sys.exit(code)


def _write_any_text() -> None:
    """Makes a terminal or file of another encoding than UTF-8 show what it can of a text, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _stop_on_sigterm() -> None:
    """Makes SIGTERM do what Ctrl-C does at that moment."""
    if threading.current_thread() is not threading.main_thread():
        return

    def handle(number: int, frame: Any) -> None:
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    signal.signal(signal.SIGTERM, handle)


def _ask_nothing(module: Any) -> None:
    """Makes transformers refuse a model with code of its own, where it would ask whether to run it."""
    module.TIME_OUT_REMOTE_CODE = 0


def _leave_closed_pipe() -> NoReturn:
    """Exits quietly once nobody reads the output any more, as after ``| head``."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)

"""Damaged files: what a library raises when it reads one becomes an error of the user, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from search_spaces.errors import InputError, short_error


@contextmanager
def file_errors_as_input_errors(file: str | Path) -> Iterator[None]:
    """Turns errors of reading a file or model folder into one line.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"`{file}` must be complete, but it cannot be read ({short_error(error)}); write it again with "
            "`nas export` or `nas convert`."
        ) from error

"""InputError: the exception for a mistake in the user's input; its message gives the rule, the value and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A recipe, file or folder from outside breaks a rule; the command line prints it as one line, exit code 2."""


def short_error(error: BaseException) -> str:
    """The message of an error in one line of at most 200 characters, or its type if it has no message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint with the known names most similar to an unknown one, then all known names."""
    known = sorted(known)
    similar = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(f'`{n}`' for n in similar)}? " if similar else ""
    return f"{hint}known: {', '.join(known)}"

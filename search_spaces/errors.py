"""InputError: the exception for a mistake in the user's input; its message gives the rule, the value and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A recipe, file or folder from outside breaks a rule; the command line prints it as one line, exit code 2."""


DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RecursionError)
"""What reading a file of ours may raise whose content is not what this version writes."""


def short_error(error: BaseException) -> str:
    """The message of an error in one line of at most 200 characters, or its type if it has no message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def described(error: BaseException) -> str:
    """The message of an error in one line, after its type where the message alone says little."""
    is_clear = isinstance(error, InputError | OSError) or type(error) is ValueError
    return short_error(error) if is_clear else f"{type(error).__name__}: {short_error(error)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint with the known names most similar to an unknown one, then all known names."""
    known = sorted(known)
    similar = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(f'`{n}`' for n in similar)}? " if similar else ""
    return f"{hint}known: {', '.join(known)}"

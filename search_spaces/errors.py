"""The one exception a user's mistake raises: the law, the value, the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A recipe, file or folder from outside breaks a rule; the command line prints it as one line, exit code 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Names the nearest neighbours of an unknown name, then everything that exists."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(f'`{n}`' for n in near)}? " if near else ""
    return f"{hint}known: {', '.join(known)}"

"""Runs a function in a new Python process, so that it measures nothing but itself."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from search_spaces import InputError
from search_spaces.errors import DAMAGE

CALL = """
import importlib, json, sys
import nas
module, name, *args = sys.argv[1:]
print(json.dumps(getattr(importlib.import_module(module), name)(*args)))
"""


def run_in_subprocess(module: str, name: str, *args: str, what: str) -> Any:
    """The result of a function, called in a new process.

    Args:
        module: Module of the function.
        name: Name of the function; it takes strings and returns JSON values.
        args: Arguments.
        what: What it runs, for the error message.

    Raises:
        InputError: If the process fails; the message ends with its last line.
    """
    command = [sys.executable, "-c", CALL, module, name, *args]
    process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["it was killed, perhaps for its memory"])[-1]
        raise InputError(f"`{what}` failed in a separate process: {last[:160]}")
    try:
        return json.loads(process.stdout.splitlines()[-1])
    except DAMAGE:
        raise InputError(f"`{what}` must print its result in a separate process, but printed none.") from None

"""Alone: a function in a new process that does nothing else, so that nothing else counts in what it measures."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from search_spaces import InputError

CALL = """
import importlib, json, sys
import nas
module, name, *args = sys.argv[1:]
print(json.dumps(getattr(importlib.import_module(module), name)(*args)))
"""


def run_in_subprocess(module: str, name: str, *args: str, what: str) -> Any:
    """What a function returns there.

    Args:
        module: Where it is.
        name: Its name; it takes texts and returns what JSON can hold.
        args: What it is called with.
        what: What it runs, for the message.

    Raises:
        InputError: If the process fails; ends with its last line.
    """
    done = subprocess.run([sys.executable, "-c", CALL, module, name, *args], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was killed, perhaps for its memory"])[-1]
        raise InputError(f"`{what}` must run alone in a clean process, but it does not: {last[:160]}")
    return json.loads(done.stdout.splitlines()[-1])

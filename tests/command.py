"""`nas` in processes of its own, forked from one that has imported what a search needs: they start at once."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

from nas import cli

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["nas.pipeline", "nas.reports.summary", "transformers.models.bert.modeling_bert"])


class Command:
    """`nas` with some words, begun; to be used as a `subprocess.Popen` with pipes."""

    def __init__(self, *words: object) -> None:
        handle, name = tempfile.mkstemp()
        os.close(handle)
        self._stderr = Path(name)
        self._process = SERVER.Process(target=_run, args=([str(word) for word in words], name))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def send_signal(self, how: signal.Signals) -> None:
        """Sends it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, how)

    def communicate(self, timeout: float = 300) -> tuple[None, str]:
        """What it wrote to standard error, once it has ended."""
        self._process.join(timeout)
        assert self.returncode is not None, "it has not ended"
        stderr = self._stderr.read_text()
        self._stderr.unlink()
        return None, stderr


def _run(words: list[str], stderr: str) -> None:
    """Runs the command line as in a process of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(stderr, os.O_WRONLY), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with Ctrl-C ignored
    sys.argv = ["nas", *words]
    cli.main()

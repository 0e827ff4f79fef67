"""Clean processes that start at once: forked from one that has imported torch and transformers and nothing of ours."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

FORKS = """
import json, os, runpy, sys, traceback
import safetensors.torch, torch, transformers
import transformers.models.bert.modeling_bert
torch.set_num_threads(1)
for line in sys.stdin:
    words, stderr, folder, environment = json.loads(line)
    child = os.fork()
    if not child:
        code = 1
        os.dup2(os.open(stderr, os.O_WRONLY), 2)
        os.chdir(folder)
        os.environ.update(environment)
        sys.argv = words
        try:
            runpy.run_path(words[0], run_name="__main__")
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@cache
def _server() -> subprocess.Popen[str]:
    """The process that forks, one a worker of pytest; it ends with its standard input."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-P", "-c", FORKS], stdin=pipe, stdout=pipe, text=True)


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` of a script in an isolated Python, with its standard error as text."""
    python, isolated, *words = command
    assert (python, isolated) == (sys.executable, "-P"), command
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        stderr = Path(folder, "stderr")
        stderr.touch()
        environment = {name: text for name, text in options["env"].items() if name.startswith("HF_")}
        server.stdin.write(json.dumps([words, str(stderr), str(Path.cwd()), environment]) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, code, "", stderr.read_text())

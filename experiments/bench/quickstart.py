"""The quickstart, quiet and beside a busy process: seconds, silence, the predictor's error, latencies measured again.

    python experiments/bench/quickstart.py [--runs 5] [--minutes 3] [--folder FOLDER]

Each run is typed into a terminal of its own, whose silences are timed. Afterwards the subnetworks of its predictor are
measured for `--minutes` more, and those of its front in a new process.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nas.pipeline import STAGES
from nas.runs.progress import quiet_libraries
from nas.runs.run import Run
from nas.supernets.latency import models_at_once
from nas.supernets.load import load_supernet
from nas.tasks.context import TaskContext
from predictors import Timing
from predictors.measurement.budget import Budget
from predictors.measurement.groups import Visit, shuffled
from predictors.measurement.prepare import prepare
from predictors.measurement.timing import REFERENCE

HERE = Path(__file__).parent
RECIPE = HERE.parent / "quickstart" / "recipe.yaml"
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\r")


@dataclass
class Watched:
    """What a terminal showed.

    Attributes:
        seconds: Stage -> seconds between its first line and that of the next stage.
        total: Seconds in all.
        silence: Longest time without any output.
        silent_after: The last words before it.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    total: float = 0.0
    silence: float = 0.0
    silent_after: str = ""


def watch(command: list[str]) -> Watched:
    """Runs a command in a terminal of its own."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS="120")
        os.execvp(command[0], command)
    seen, names = Watched(), {stage.name for stage in STAGES}
    start = last = time.monotonic()
    stage, since, said = "start", start, b""
    while True:
        ready, _, _ = select.select([terminal], [], [], 0.1)
        now = time.monotonic()
        if not ready:
            continue
        try:
            data = os.read(terminal, 2**16)
        except OSError:
            break
        if not data:
            break
        if now - last > seen.silence:
            seen.silence, seen.silent_after = now - last, said.decode(errors="ignore").strip()[-60:]
        last, said = now, ESCAPES.sub(b"", data)
        words = [word for line in said.decode(errors="ignore").splitlines() for word in line.split()[:1]]
        shown = next((word for word in reversed(words) if word in names), stage)
        if shown != stage:
            seen.seconds[stage] = seen.seconds.get(stage, 0.0) + now - since
            stage, since = shown, now
    seen.seconds[stage] = seen.seconds.get(stage, 0.0) + last - since
    seen.total = last - start
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed: {said.decode(errors='ignore')}")
    return seen


@contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """A process that keeps one core busy, or none."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def predictor_error(folder: Path, minutes: float) -> float:
    """Mean error of a run's predictor in percent, against a longer measurement of the subnetworks it was fitted on."""
    quiet_libraries()
    run = Run(folder)
    context, predictor = TaskContext(run.recipe), run.target.load_predictor()
    supernet, _ = load_supernet(run, context)
    workload, inputs = run.recipe.workload, context.dummy_inputs(run.recipe.workload)
    subnets, timings = {subnet.key: subnet for subnet in predictor.subnets}, dict[str, Timing]()
    visit = Visit(
        lambda key: prepare(supernet.extract(supernet.parent if key == REFERENCE else subnets[key]), inputs, workload),
        workload,
        Budget(60 * minutes),
        timings.update,
        lambda: run.target.store.reference_ms(workload),
        models_at_once(context, supernet, workload),
        least=len(subnets),
    )
    visit.measure(shuffled(list(subnets), 1))
    measured = np.array([timings[key].latency_ms for key in subnets])
    return 100 * float(np.mean(np.abs(predictor.predict(list(subnets.values())) / measured - 1)))


def main() -> None:
    """Runs the quickstart and prints a line per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=3.0, help="Of the longer measurement.")
    parser.add_argument("--folder", type=Path, help="Where runs are kept; default: a temporary folder.")
    parser.add_argument("overrides", nargs="*", help="Overrides of the recipe.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for busy in (False, True):
            for number in range(arguments.runs):
                folder = (arguments.folder or Path(temporary)) / f"{'busy' if busy else 'quiet'}-{number}"
                nas = [
                    sys.executable,
                    "-m",
                    "nas.cli",
                    "search",
                    str(RECIPE),
                    *arguments.overrides,
                    "--run",
                    str(folder),
                ]
                with neighbour(busy):
                    seen = watch([*nas, "--run", str(folder)])
                    error = predictor_error(folder, arguments.minutes)
                    again = [sys.executable, str(HERE / "remeasure.py"), str(folder), "--processes", "1"]
                    held = subprocess.run(again, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
                volumes, front = Run(folder).results()["hypervolume"], len(Run(folder).front())
                stages = " ".join(f"{name} {seconds:.0f}" for name, seconds in seen.seconds.items())
                print(f"{folder.name}: {seen.total:.0f} s ({stages}); load {os.getloadavg()[0]:.1f}")
                print(f"  longest silence {seen.silence:.1f} s, after `{seen.silent_after}`")
                print(f"  predictor {error:.1f} % from {arguments.minutes:g} more minutes; {held}")
                shown = {name: round(value, 4) for name, value in volumes.items()}
                print(f"  hypervolume {shown}; {front} verified on the front", flush=True)


if __name__ == "__main__":
    main()

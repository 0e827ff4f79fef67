"""Peak memory of each stage of a run, in bytes a parameter, beside what `nas search --dry-run` says.

python -m experiments.bench.memory MODEL TRAIN.txt TEST.txt RUN|--count [KEY=VALUE ...]

``--count`` only counts: of a model that is too large for this machine.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import threading
import time
from contextlib import suppress
from multiprocessing import get_context
from typing import Any

import psutil
import torch
import yaml

from nas.pipeline import STAGES, Stage, locked_run
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.stages.needs import meta_model, stage_needs
from nas.tasks.context import TaskContext
from predictors.measurement.memory import peak_mb, reset_peak_memory

SMALL: dict[str, Any] = {
    "task": {"type": "text-generation", "max_length": 128, "search_examples": 8, "train_examples": 16},
    "space": {"intermediate_size": [0.5, 0.75, 1.0], "num_attention_heads": [0.0, 1.0]},
    "workload": {"sequence_length": 128, "threads": 1},
    "objectives": {"loss": "minimize", "num_parameters": "minimize"},
    "supernet": {"strategy": "none"},
    "profile": {"samples": 10, "minutes": 0.5},
    "search": {"evaluations": 6},
    "finish": {"models": 0},
    "verify": {"minutes": 0.5},
}
"""A run that is as small as it can be: the peaks do not depend on how many examples and subnetworks there are."""


def main() -> None:
    """Prints a line for each stage, each of which runs in a process of its own that has the data and the libraries."""
    from transformers import AutoConfig

    import nas.stages.check  # noqa: F401  (what all stages share is imported once)

    model, train, test, folder, *overrides = sys.argv[1:]
    config = AutoConfig.from_pretrained(model)
    space = {name: [int(share * getattr(config, name)) for share in shares] for name, shares in SMALL["space"].items()}
    given = {**SMALL, "model": model, "task": {**SMALL["task"], "train": train, "test": test}, "space": space}
    is_counted = folder == "--count"
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(given, file)
        file.flush()
        recipe = Recipe.load(file.name, overrides)
    torch.set_num_threads(1)  # threads do not survive a fork
    if is_counted:
        return count(TaskContext(recipe))
    print("bytes a parameter: measured, counted; seconds", flush=True)
    with locked_run(recipe, folder) as (context, run):
        for stage in STAGES:
            process = get_context("fork").Process(target=measure, args=(stage, context, run))
            process.start()
            process.join()


def count(context: TaskContext) -> None:
    """Prints what each stage needs, in GB and in bytes a parameter; weights are not read."""
    empty = meta_model(context)
    print(f"{empty.num_parameters():,} parameters; GB, bytes a parameter")
    for name, needs in stage_needs(context, empty).items():
        print(f"{name:<9} {needs.memory_gb:6.1f} {1e9 * needs.memory_gb / empty.num_parameters():6.1f}")


def measure(stage: Stage, context: TaskContext, run: Run) -> None:
    """Runs a stage and prints its peak beyond what the process had before, processes that it starts included."""
    empty = meta_model(context)
    parameters, needs = empty.num_parameters(), stage_needs(context, empty)
    started = Started()
    gc.collect()
    reset_peak_memory()
    before, start = peak_mb(), time.perf_counter()
    if not stage.is_done(run):
        stage.run(run, context)
    peak = max(peak_mb() - before, started.peak_mb)
    counted = 1e9 * needs[stage.name].memory_gb / parameters if stage.name in needs else 0.0
    seconds = time.perf_counter() - start
    print(f"{stage.name:<9} {1e6 * peak / parameters:6.1f} {counted:6.1f} {seconds:6.0f} s", flush=True)


class Started(threading.Thread):
    """Watches the memory of this process and those that it starts, each beyond what libraries take.

    Attributes:
        peak_mb: The most so far, while a process was running that this one started.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._own, self.peak_mb = psutil.Process(), 0.0
        self._libraries = self._own.memory_info().rss
        self.start()

    def run(self) -> None:
        """Looks every few milliseconds."""
        while True:
            with suppress(psutil.NoSuchProcess):
                found = [each.memory_info().rss for each in (self._own, *self._own.children())]
                beyond = [max(0, each - self._libraries) for each in found]
                if len(found) > 1:
                    self.peak_mb = max(self.peak_mb, sum(beyond) / 1e6)
            time.sleep(0.005)


if __name__ == "__main__":
    main()

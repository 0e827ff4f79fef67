"""Peak memory of each stage of a run, in bytes a parameter, beside what `nas search --dry-run` says.

python -m experiments.bench.memory MODEL TRAIN.txt TEST.txt RUN [KEY=VALUE ...]
"""

from __future__ import annotations

import gc
import sys
import tempfile
from multiprocessing import get_context
from typing import Any

import yaml

from nas.pipeline import STAGES, locked_run
from nas.recipe.schema import Recipe
from nas.stages.needs import meta_model, stage_needs
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
    """Prints a line for each stage, each of which runs in a process of its own."""
    from transformers import AutoConfig

    model, train, test, folder, *overrides = sys.argv[1:]
    config = AutoConfig.from_pretrained(model)
    space = {name: [int(share * getattr(config, name)) for share in shares] for name, shares in SMALL["space"].items()}
    task = {**SMALL["task"], "train": train, "test": test}
    print("bytes a parameter: measured, counted", flush=True)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({**SMALL, "model": model, "task": task, "space": space}, file)
        file.flush()
        for stage in STAGES:
            process = get_context("spawn").Process(target=measure, args=(stage.name, file.name, folder, overrides))
            process.start()
            process.join()


def measure(name: str, recipe: str, folder: str, overrides: list[str]) -> None:
    """Runs a stage and prints its peak beyond what the process had before."""
    stage = next(stage for stage in STAGES if stage.name == name)
    with locked_run(Recipe.load(recipe, overrides), folder) as (context, run):
        empty = meta_model(context)
        parameters, needs = empty.num_parameters(), stage_needs(context, empty)
        gc.collect()
        reset_peak_memory()
        before = peak_mb()
        if not stage.is_done(run):
            stage.run(run, context)
        counted = 1e9 * needs[name].memory_gb / parameters if name in needs else 0.0
        print(f"{name:<9} {1e6 * (peak_mb() - before) / parameters:6.1f} {counted:6.1f}", flush=True)


if __name__ == "__main__":
    main()

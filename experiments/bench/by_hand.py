"""What an engineer would do by hand, at equal CPU time: drop layers of the parent, or scale it uniformly, and distil.

    python experiments/bench/by_hand.py experiments/quickstart/recipe.yaml --run runs/by-hand --seeds 3

For each seed it makes a run of the recipe (what the run holds is not done again), and adds up the CPU seconds of the
stages after the parent: supernet, profile, search and finish. Each finished model has an equal share of them, and
each of its baselines as much: the deepest layer drops whose predicted latency is no longer, with layers evenly spaced
and with the most important ones, and the largest uniform scaling below that latency. Baselines are cut from the
parent and learn from labels and from the parent's outputs, as the finished models do. All are scored on the held-out
split; latencies are the predictor's.

Prints one row per model: latency over the parent's, accuracy with its standard error, and the paired difference to the
finished model of the same budget with its standard error over the examples. Set threads: `OMP_NUM_THREADS=1`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.pipeline import STAGES, locked_run
from nas.recipe.schema import Recipe
from nas.runs.finished import read_finished
from nas.runs.progress import quiet_libraries
from nas.runs.run import Run
from nas.supernets.load import load_supernet
from nas.supernets.supernet import Supernet
from nas.supernets.training import model_trainer
from nas.tasks.context import TaskContext
from search_spaces import SearchSpace, SubnetConfig
from search_spaces.layer_drop import drop_layers, evenly_spaced

TIMED = ("supernet", "profile", "search", "finish")
"""Stages whose CPU seconds are shared among the baselines."""


def main() -> None:
    """Parses the command line and prints the table of every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--run", required=True, type=Path, help="Folder; one run for each seed is made in it.")
    parser.add_argument("--seeds", type=int, default=1)
    arguments, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    quiet_libraries()
    for seed in range(arguments.seeds):
        recipe = Recipe.load(arguments.recipe, [*overrides, f"seed={seed}"])
        compare(recipe, arguments.run / f"seed-{seed}")


def compare(recipe: Recipe, folder: Path) -> None:
    """Makes the run and its baselines, and prints their rows."""
    seconds = run_timed(recipe, folder)
    run, context = Run(folder), TaskContext(recipe)
    supernet, space = load_supernet(run, context)
    predict = run.load_predictor().predict
    parent_ms = float(predict([supernet.parent])[0])
    subnets = {m.subnet.key: m.subnet for m in read_finished(run) if m.source == "search"}
    budget = sum(seconds.values()) / max(len(subnets), 1)
    print(f"seed {recipe.seed}: {', '.join(f'{name} {s:.0f} s' for name, s in seconds.items())} of CPU time")
    print(f"each of {len(subnets)} models has {budget:.0f} s; parent {parent_ms:.3g} ms as predicted")
    teacher = context.load_model(run.parent)
    row("parent", 1.0, correct(teacher, context), None)
    for key, chosen in subnets.items():
        ms = float(predict([chosen])[0])
        ours = correct(context.load_model(run.finished / key), context)
        row(f"finished {key}", ms / parent_ms, ours, None)
        for name, subnet in baselines(space, run.layer_order, predict, ms):
            model = Supernet(context.load_model(run.parent)).extract(subnet)
            distil(model, teacher, context, budget)
            row(f"  {name}", float(predict([subnet])[0]) / parent_ms, correct(model, context), ours)


def run_timed(recipe: Recipe, folder: Path) -> dict[str, float]:
    """Runs the missing stages; returns the CPU seconds of those after the parent, kept in the folder."""
    file = folder / "cpu_seconds.json"
    with locked_run(recipe, folder) as (context, run):
        seconds: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
        for stage in STAGES:
            if not stage.is_done(run):
                start = time.process_time()
                stage.run(run, context)
                seconds[stage.name] = time.process_time() - start
                file.write_text(json.dumps(seconds))
    return {name: seconds[name] for name in TIMED if name in seconds}


def baselines(space: SearchSpace, order: list[int], predict: Any, ms: float) -> Iterator[tuple[str, SubnetConfig]]:
    """The deepest layer drops and the largest uniform scaling that are predicted no slower than ``ms``."""
    depths = range(space.parent.num_hidden_layers, 0, -1)
    important = [drop_layers(space.parent, sorted(order[:depth])) for depth in depths]
    for name, drops in (("layers evenly spaced", evenly_spaced(space)), ("most important layers", important)):
        affordable = [subnet for subnet in drops if float(predict([subnet])[0]) <= ms]
        subnet = (affordable or drops[-1:])[0]
        yield f"{name} {subnet.layers}", subnet
    scalings = [subnet for subnet in space.uniform_scalings() if float(predict([subnet])[0]) <= ms]
    if scalings:
        yield "uniform scaling", max(scalings, key=lambda subnet: float(predict([subnet])[0]))


def distil(model: Any, teacher: Any, context: TaskContext, seconds: float) -> None:
    """Trains a model with the finish's settings for about so many CPU seconds, found by timing its first steps."""
    settings = context.recipe.finish
    model.requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        examples, task = context.training_set(settings), context.splits.task
        options = {"teacher": teacher, "temperature": settings.temperature}
        trainer = model_trainer(model, settings, Path(folder), examples, task, context.recipe.seed, **options)
        trainer.args.save_strategy = "no"
        trainer.args.max_steps = trainer.steps_within(seconds, time.process_time)
        trainer.train()
    model.eval()


def correct(model: Any, context: TaskContext) -> np.ndarray:
    """Whether each held-out example is classified correctly (examples,)."""
    model.eval()
    hits = []
    with torch.inference_mode():
        for batch in context.splits.test.batches:
            labels = batch["labels"]
            hits.append((model(**batch).logits.argmax(-1) == labels).float().numpy())
    return np.concatenate(hits)


def row(name: str, ratio: float, hits: np.ndarray, ours: np.ndarray | None) -> None:
    """Prints one row."""
    error = hits.std() / len(hits) ** 0.5
    text = f"{name:44} x{1 / ratio:5.2f}  accuracy {hits.mean():.4f} ± {error:.4f}"
    if ours is not None:
        difference = ours - hits
        text += f"  finished - it {difference.mean():+.4f} ± {difference.std() / len(difference) ** 0.5:.4f}"
    print(text, flush=True)


if __name__ == "__main__":
    main()

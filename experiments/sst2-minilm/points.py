"""The best subnetworks under 0.27, 0.62 and 1.0 GMACs on all of SST-2, fine-tuned, one seed per call.

    python experiments/sst2-minilm/points.py FOLDER [section.key=value ...] --seed 0
    python experiments/sst2-minilm/points.py FOLDER --table

Accuracy against multiply-accumulates at 128 tokens; no latency is measured. A subnetwork is picked by what it scores
on the search slice, and only the picked ones see the development set: once with the weights they inherit, once
fine-tuned with the parent as the teacher. Results go to FOLDER/points.jsonl, one line per seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from nas.pipeline import run_stages
from nas.recipe.schema import Recipe
from nas.runs.progress import quiet_libraries
from nas.stages.check import open_run
from nas.studies.evaluator import Evaluator
from nas.studies.search_loop import run_locally, run_studies
from nas.studies.study import evaluated_points, open_studies
from nas.supernets.load import load_supernet
from nas.supernets.training import model_trainer
from nas.tasks.evaluation import score
from search_spaces import SubnetConfig

RECIPE = Path(__file__).parent / "recipe.yaml"
OVERRIDES = [
    "objectives={accuracy: maximize, macs: minimize}",
    "space.attention=null",
    "parent={epochs: 3, learning_rate: 1.0e-4, batch_size: 128}",
    "supernet={strategy: sandwich, epochs: 5, learning_rate: 2.0e-4, batch_size: 128, sampled_subnets: 2}",
]
"""Changes to the recipe: every phrase, larger batches, no sparse attention, which is not faster here."""
BUDGETS = (0.27e9, 0.62e9, 1.0e9)


class Unmeasured:
    """In place of the latency predictor: latency is no objective here."""

    def predict(self, subnets: Sequence[SubnetConfig]) -> np.ndarray:
        """Zeros (n,)."""
        return np.zeros(len(subnets))

    residual_bound = 0.0


def run_seed(folder: Path, seed: int, overrides: Sequence[str], finetune_epochs: float) -> dict[str, Any]:
    """All results of one seed; fine-tuning takes its settings from the parent's, as `nas finetune` does."""
    recipe = Recipe.load(RECIPE, [*OVERRIDES, f"seed={seed}", *overrides])
    finetune = recipe.parent.model_copy(update={"epochs": finetune_epochs})
    seconds, start = {}, time.perf_counter()

    def took(stage: str) -> None:
        nonlocal start
        seconds[stage], start = round(time.perf_counter() - start, 1), time.perf_counter()
        print(f"seed {seed}: {stage} {seconds[stage]} s", flush=True)

    context, run = open_run(recipe, folder / f"seed{seed}")
    examples = context.training_set(finetune)
    took("data")
    run_stages(run, context, last="parent")
    took("parent")
    run_stages(run, context, last="supernet")
    took("supernet")
    supernet, space = load_supernet(run, context)
    evaluator = Evaluator(recipe, supernet, context.splits.search, {"latency_ms": Unmeasured()})  # type: ignore[arg-type]
    run_studies(run, recipe, space, evaluator, run_locally)
    took("search")
    evaluated = evaluated_points(open_studies(run.study, recipe)["search"])
    teacher = context.load_model(run.parent).to(supernet.model.device)
    full_supernet = supernet.extract(supernet.parent)
    picked = {}
    for budget in BUDGETS:
        best = max(
            (p for p in evaluated if p.values["macs"] <= budget),
            key=lambda p: (p.values["accuracy"], -p.values["macs"]),
        )
        model = supernet.extract(best.subnet)
        inherited = score(model, context.splits.test, ["accuracy"])["accuracy"].value
        trainer = model_trainer(model, finetune, run.folder / "finetune", examples, context.splits.task, seed, teacher)
        trainer.args.save_strategy = "no"
        trainer.train()
        tuned = score(model.eval(), context.splits.test, ["accuracy"])["accuracy"].value
        picked[f"{budget / 1e9:g}"] = {
            "subnet": best.subnet.to_dict(),
            "macs": best.values["macs"],
            "num_parameters": best.values["num_parameters"],
            "on search slice": best.values["accuracy"],
            "inherited": inherited,
            "fine-tuned": tuned,
        }
        took(f"fine-tuning {budget / 1e9:g}")
        print(f"seed {seed}: at most {budget / 1e9:g} GMACs {inherited:.4f} -> {tuned:.4f}", flush=True)
    references = {"parent": teacher, "supernet, whole": full_supernet}
    return {
        "seed": seed,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "examples": len(examples),
        "accuracy": {
            name: score(model, context.splits.test, ["accuracy"])["accuracy"].value
            for name, model in references.items()
        },
        "picked": picked,
        "seconds": seconds,
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Development accuracy, mean and standard deviation over seeds."""

    def over(values: Sequence[float]) -> str:
        return f"{100 * mean(values):.1f}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")

    print(f"seeds {[row['seed'] for row in rows]}, {rows[0]['examples']} training phrases, {rows[0]['device']}")
    print("| | GMACs at 128 tokens | parameters M | inherited | fine-tuned |\n|---|---|---|---|---|")
    for name in rows[0]["accuracy"]:
        print(f"| {name} | | | {over([row['accuracy'][name] for row in rows])} | |")
    for budget in rows[0]["picked"]:
        picks = [row["picked"][budget] for row in rows]
        sizes = [
            f"{mean([each[what] / unit for each in picks]):.2f}"
            for what, unit in (("macs", 1e9), ("num_parameters", 1e6))
        ]
        cells = [*sizes, *(over([each[what] for each in picks]) for what in ("inherited", "fine-tuned"))]
        print(f"| at most {budget} | {' | '.join(cells)} |")


def main() -> None:
    """Runs a seed, or prints the table of the stored ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finetune-epochs", type=float, default=5)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_intermixed_args()
    results = arguments.folder / "points.jsonl"
    if not arguments.table:
        quiet_libraries()
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU
        row = run_seed(arguments.folder, arguments.seed, arguments.overrides, arguments.finetune_epochs)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print_table([json.loads(line) for line in results.read_text().splitlines()])


if __name__ == "__main__":
    main()

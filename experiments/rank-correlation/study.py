"""Does a supernet rank its subnetworks as separate training would? Inherited against stand-alone accuracy.

    python experiments/rank-correlation/study.py RECIPE FOLDER [section.key=value ...] [--seeds 3] [--processes 1]
    python experiments/rank-correlation/study.py RECIPE FOLDER --table

For each seed: one parent; one supernet per setting; the same subnetworks, spread over their numbers of parameters,
scored on the held-out split with the weights they inherit; the same ones extracted from the parent in importance order
and trained separately on its outputs and the labels, for as many epochs as the parent; and those of the default
supernet after further steps. Results go to FOLDER/results.jsonl; results that are there are not computed again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr

from nas.pipeline import run_stages
from nas.recipe.schema import Recipe
from nas.runs.progress import quiet_libraries
from nas.runs.run import Run
from nas.stages.check import open_run
from nas.stages.supernet import LAYER_EXAMPLES
from nas.supernets.device import training_device
from nas.supernets.importance import order_by_importance
from nas.supernets.load import CALIBRATION_EXAMPLES, load_supernet
from nas.supernets.space import search_space
from nas.supernets.strategies import stratified_sampler
from nas.supernets.supernet import Supernet
from nas.supernets.training import model_trainer
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import EvaluationSet, score
from predictors import AnalyticCosts
from search_spaces import SearchSpace, SubnetConfig

SETTINGS: dict[str, list[str]] = {
    "default": [],
    "order: none": ["supernet.order=none"],
    "order: activation": ["supernet.order=activation"],
    "teacher: in-place": ["supernet.teacher=in-place"],
    "sampler: uniform": ["supernet.sampler=uniform"],
    "sampler: num_parameters": ["supernet.sampler=num_parameters"],
    "strategy: single-path": ["supernet.strategy=single-path"],
    "strategy: granularity": ["supernet.strategy=granularity"],
}
AS_LONG: dict[str, tuple[str, ...]] = {
    "single-path, as long": ("strategy: single-path",),
    "granularity, as long": ("strategy: granularity",),
    "single-path, no order, as long": ("strategy: single-path", "order: none"),
}
"""Combined settings, trained for as much CPU time as the default; the last is a plain supernet."""
STEPS = (0, 100, 300, 1000)
NEAR = 5
"""Neighbours in the stand-alone ranking that count as near-equal."""

Row = dict[str, Any]


class Study:
    """All results of one recipe, each computed once.

    Args:
        recipe: A recipe file.
        overrides: Of the recipe, in all settings.
        folder: Runs and results.
        subnets: How many subnetworks are compared.
    """

    def __init__(self, recipe: Path, overrides: Sequence[str], folder: Path, subnets: int) -> None:
        self.recipe, self.overrides, self.folder, self.count = recipe, overrides, folder, subnets
        self.path = folder / "results.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self.path.touch()

    def rows(self) -> list[Row]:
        """The results so far."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def add(self, **row: Any) -> None:
        """Stores a result."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def has(self, **row: Any) -> bool:
        """Whether a result is stored."""
        return any(all(known.get(name) == value for name, value in row.items()) for known in self.rows())

    def run_seed(self, seed: int, pool: Executor) -> None:
        """Everything of one seed, as many results at once as the pool has processes."""
        pool.submit(self.begin, seed).result()
        default = pool.submit(self.inherited, "default", seed)
        jobs = [pool.submit(self.stand_alone, seed)]
        default.result()
        jobs += [pool.submit(self.after_steps, steps, seed) for steps in reversed(STEPS[1:])]
        trained = {name: pool.submit(self.inherited, name, seed) for name in SETTINGS if name != "default"}
        for job in trained.values():
            job.result()
        jobs += [pool.submit(self.inherited, name, seed) for name in AS_LONG]
        for job in jobs:
            job.result()

    def begin(self, seed: int) -> None:
        """The parent and the costs of the subnetworks."""
        context, run = self.run_of("default", seed)
        run_stages(run, context, last="parent")
        self.subnets(context, seed)

    def settings(self, name: str, seed: int) -> list[str]:
        """Overrides of a setting."""
        if name in SETTINGS:
            return SETTINGS[name]
        seconds = {row["setting"]: row["cpu_s"] for row in self.rows() if "cpu_s" in row and row["seed"] == seed}
        overrides = [override for setting in AS_LONG[name] for override in SETTINGS[setting]]
        epochs = Recipe.load(self.recipe, self.overrides).supernet.epochs
        epochs *= seconds["default"] / seconds[AS_LONG[name][0]]
        return [*overrides, f"supernet.epochs={epochs:.2f}"]

    def run_of(self, name: str, seed: int) -> tuple[TaskContext, Run]:
        """The run of one setting; all settings of a seed share its parent."""
        overrides = [*self.overrides, *self.settings(name, seed), f"seed={seed}", "constraints={}"]
        recipe = Recipe.load(self.recipe, overrides)
        folder = self.folder / f"seed{seed}" / name.replace(" ", "-").replace(":", "").replace(",", "")
        context, run = open_run(recipe, folder)
        parent = self.folder / f"seed{seed}" / "default" / "parent"
        if name != "default" and not run.parent.exists():
            run.parent.symlink_to(parent.resolve(), target_is_directory=True)
        return context, run

    def subnets(self, context: TaskContext, seed: int) -> list[SubnetConfig]:
        """Distinct subnetworks, spread evenly over their parameters; the order of the layers is the parent's own."""
        supernet = Supernet(context.load_model())
        counts, space = AnalyticCosts.from_model(supernet.model, supernet.layout), search_space(context)
        draw, rng = stratified_sampler(space, parameters(counts)), Random(f"{seed}/study")
        subnets: dict[str, SubnetConfig] = {}
        while len(subnets) < self.count:
            subnet = draw(rng)
            subnets[subnet.key] = subnet
        if not self.has(seed=seed, what="costs"):
            self.add(
                seed=seed,
                what="costs",
                num_parameters={k: counts.num_parameters(s) for k, s in subnets.items()},
                macs={k: counts.macs(s, context.recipe.workload.sequence_length) for k, s in subnets.items()},
            )
        return list(subnets.values())

    def inherited(self, name: str, seed: int) -> None:
        """Trains the supernet of a setting and scores the subnetworks in it."""
        if self.has(seed=seed, setting=name):
            return
        context, run = self.run_of(name, seed)
        start = time.process_time()
        run_stages(run, context, last="supernet")
        seconds = time.process_time() - start
        supernet, space = load_supernet(run, context)
        scores = {}
        for subnet in self.subnets(context, seed):
            supernet.activate(placed(subnet, space))
            scores[subnet.key] = quality(supernet.model, context)
        self.add(seed=seed, setting=name, cpu_s=seconds, quality=scores)

    def stand_alone(self, seed: int) -> None:
        """Trains each subnetwork separately, extracted from the parent in importance order."""
        if self.has(seed=seed, setting="alone"):
            return
        context, run = self.run_of("default", seed)
        supernet = Supernet(context.load_model(run.parent).to(training_device()))
        train, task = context.splits.train, context.splits.task
        calibration = EvaluationSet.from_dataset(train.select(range(min(CALIBRATION_EXAMPLES, len(train)))), task, 32)
        batches = calibration.labelled_batches(CALIBRATION_EXAMPLES)
        order = order_by_importance(supernet, batches, calibration.labelled_batches(LAYER_EXAMPLES))
        space, scores = search_space(context, order.layers), {}
        for subnet in self.subnets(context, seed):
            model = supernet.extract(placed(subnet, space))
            scores[subnet.key] = quality(self.trained(model, context, run, "alone", seed), context)
        self.add(seed=seed, setting="alone", quality=scores)

    def after_steps(self, steps: int, seed: int) -> None:
        """Trains each subnetwork of the default supernet for further steps."""
        name = after(steps)
        if self.has(seed=seed, setting=name):
            return
        context, run = self.run_of("default", seed)
        supernet, space = load_supernet(run, context)
        scores = {}
        for subnet in self.subnets(context, seed):
            model = supernet.extract(placed(subnet, space))
            scores[subnet.key] = quality(self.trained(model, context, run, f"after-{steps}", seed, steps), context)
        self.add(seed=seed, setting=name, quality=scores)

    def trained(self, model: Any, context: TaskContext, run: Run, name: str, seed: int, steps: int = -1) -> Any:
        """A model after training on the parent's outputs and labels: for the parent's epochs, or for ``steps``."""
        checkpoints, teacher = run.folder / name, context.load_model(run.parent)
        settings, splits = context.recipe.parent, context.splits
        trainer = model_trainer(
            model, settings, checkpoints, context.training_set(settings), splits.task, seed, teacher
        )
        trainer.args.max_steps, trainer.args.save_strategy = steps, "no"
        trainer.train()
        return model.eval()


def after(steps: int) -> str:
    """Name of the subnetworks of the default supernet after further training."""
    return f"default, {steps} steps"


def parameters(counts: AnalyticCosts) -> Callable[[Sequence[SubnetConfig]], np.ndarray]:
    """Number of parameters of subnetworks (n,)."""
    return lambda subnets: np.array([counts.num_parameters(subnet) for subnet in subnets])


def placed(subnet: SubnetConfig, space: SearchSpace) -> SubnetConfig:
    """The subnetwork with its layers the most important ones of another order: depth and widths are compared."""
    return SubnetConfig.from_dict(
        {**subnet.to_dict(), "layers": space.most_important_layers([subnet.num_hidden_layers])}
    )


def quality(model: Any, context: TaskContext) -> dict[str, float]:
    """Metric and loss on the held-out split."""
    name = context.recipe.primary_metric
    scores = score(model, context.splits.test, list(dict.fromkeys([name, "loss"])))
    return {"quality": scores[name].value, "loss": scores["loss"].value}


def print_tables(rows: Sequence[Row]) -> None:
    """Rank correlation with the stand-alone loss, and mean quality; mean and standard deviation over seeds."""
    standalone = {row["seed"]: row["quality"] for row in rows if row.get("setting") == "alone"}
    print(f"seeds {sorted(standalone)}, {len(next(iter(standalone.values())))} subnetworks each")
    columns = ("", "mean quality", "mean loss", "Kendall tau", "Spearman", "tau among near-equal", "CPU s")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    settings = {row.get("setting") for row in rows}
    for name in ("alone", *SETTINGS, *AS_LONG, *map(after, STEPS[1:])):
        if name not in settings:
            continue
        by_seed = {row["seed"]: row for row in rows if row.get("setting") == name and row["seed"] in standalone}
        keys = {seed: list(standalone[seed]) for seed in by_seed}
        loss = {s: np.array([row["quality"][k]["loss"] for k in keys[s]]) for s, row in by_seed.items()}
        truth = {s: np.array([standalone[s][k]["loss"] for k in keys[s]]) for s in by_seed}
        means = [np.mean([row["quality"][k]["quality"] for k in keys[s]]) for s, row in by_seed.items()]
        cells = [spread(means), spread([float(v.mean()) for v in loss.values()])]
        cells += correlations(loss, truth) if name != "alone" else ["", "", ""]
        seconds = [row["cpu_s"] for row in by_seed.values() if "cpu_s" in row]
        took = f"{np.mean(seconds):.0f}" if seconds else ""
        print(f"| {name} | {' | '.join(cells)} | {took} |")
    for cost in ("num_parameters", "macs"):
        known = {row["seed"]: row[cost] for row in rows if row.get("what") == "costs" and row["seed"] in standalone}
        values = {s: -np.array([costs[k] for k in standalone[s]], dtype=float) for s, costs in known.items()}
        truth = {s: np.array([standalone[s][k]["loss"] for k in standalone[s]]) for s in known}
        print(f"| ranked by {cost} | | | {' | '.join(correlations(values, truth))} | |")


def correlations(values: dict[int, np.ndarray], truth: dict[int, np.ndarray]) -> list[str]:
    """Kendall tau, Spearman's rho, and tau over pairs at most some places apart in the truth."""
    taus = [kendalltau(values[s], truth[s]).statistic for s in values]
    rhos = [spearmanr(values[s], truth[s]).statistic for s in values]
    return [spread(taus), spread(rhos), spread([near(values[s], truth[s]) for s in values])]


def near(values: np.ndarray, truth: np.ndarray) -> float:
    """Kendall's tau over the pairs that lie at most `NEAR` places apart in the truth."""
    order = np.argsort(truth)
    signs = [
        np.sign(values[order[b]] - values[order[a]])
        for a in range(len(order))
        for b in range(a + 1, min(a + 1 + NEAR, len(order)))
    ]
    return float(np.mean(signs))


def spread(values: Sequence[float]) -> str:
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def quiet_process() -> None:
    """Sets up a process that computes results."""
    quiet_libraries()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--subnets", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_intermixed_args()
    if min(arguments.seeds, arguments.subnets, arguments.processes) < 1:
        parser.error("--seeds, --subnets and --processes must be at least 1.")
    study = Study(arguments.recipe, arguments.overrides, arguments.folder, arguments.subnets)
    if not arguments.table:
        spawn = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(arguments.processes, spawn, quiet_process) as pool,
            ThreadPoolExecutor(arguments.seeds) as seeds,
        ):
            list(seeds.map(lambda seed: study.run_seed(seed, pool), range(arguments.seeds)))
    print_tables(study.rows())


if __name__ == "__main__":
    main()

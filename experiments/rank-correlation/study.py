"""Does a supernet rank its subnetworks as training each alone would? Inherited against stand-alone quality.

    python experiments/rank-correlation/study.py RECIPE FOLDER [section.key=value ...] [--seeds 3] [--processes 1]
    python experiments/rank-correlation/study.py RECIPE FOLDER --table

For each seed: one parent; one supernet a setting; the same subnetworks, spread over their numbers of parameters, with
the weights they inherit, scored on the held-out split; the same ones cut from the parent in importance order and
trained alone, from its outputs and the labels, for as many epochs as it was; and those of the default supernet after
some more steps. Results go to FOLDER/results.jsonl, and what is there is not computed again.
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
from nas.supernets.importance import order_by_importance
from nas.supernets.load import CALIBRATION_EXAMPLES, load_supernet
from nas.supernets.space import search_space
from nas.supernets.strategies import stratified_sampler
from nas.supernets.supernet import Supernet
from nas.supernets.training import model_trainer, training_device
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import EvaluationSet, score
from predictors import AnalyticCosts
from search_spaces import SearchSpace, SubnetConfig

SETTINGS: dict[str, list[str]] = {
    "default": [],
    "order: none": ["supernet.order=none"],
    "order: activation": ["supernet.order=activation"],
    "teacher: in-place": ["supernet.teacher=in-place"],
    "relations 1": ["supernet.relations=1.0"],
    "relations 1 of attention": ["supernet.relations=1.0", "supernet.relations_of=attention"],
    "sampler: uniform": ["supernet.sampler=uniform"],
    "sampler: num_parameters": ["supernet.sampler=num_parameters"],
    "strategy: single-path": ["supernet.strategy=single-path"],
    "strategy: granularity": ["supernet.strategy=granularity"],
    "strategy: progressive": ["supernet.strategy=progressive"],
}
AS_LONG: dict[str, tuple[str, ...]] = {
    "single-path, as long": ("strategy: single-path",),
    "granularity, as long": ("strategy: granularity",),
    "single-path, no order, as long": ("strategy: single-path", "order: none"),
}
"""Settings together, trained until they have taken as much CPU time as the default; the last is a plain supernet."""
STEPS = (0, 100, 300, 1000)
NEAR = 5
"""Neighbours in stand-alone quality that count as near-equal."""

Row = dict[str, Any]


class Study:
    """All figures of one recipe, each computed once.

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
        """What is known."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def add(self, **row: Any) -> None:
        """Notes a figure."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def has(self, **row: Any) -> bool:
        """Whether a figure is known."""
        return any(all(found.get(name) == value for name, value in row.items()) for found in self.rows())

    def run_seed(self, seed: int, pool: Executor) -> None:
        """Everything of one seed, as many figures at once as the pool has processes."""
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
        context, run = self.open_run("default", seed)
        run_stages(run, context, last="parent")
        self.subnets(context, seed)

    def settings(self, name: str, seed: int) -> list[str]:
        """Overrides of a setting."""
        if name in SETTINGS:
            return SETTINGS[name]
        seconds = {row["setting"]: row["cpu_s"] for row in self.rows() if "cpu_s" in row and row["seed"] == seed}
        together = [override for setting in AS_LONG[name] for override in SETTINGS[setting]]
        epochs = Recipe.load(self.recipe, self.overrides).supernet.epochs
        epochs *= seconds["default"] / seconds[AS_LONG[name][0]]
        return [*together, f"supernet.epochs={epochs:.2f}"]

    def open_run(self, name: str, seed: int) -> tuple[TaskContext, Run]:
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
        found: dict[str, SubnetConfig] = {}
        while len(found) < self.count:
            subnet = draw(rng)
            found[subnet.key] = subnet
        if not self.has(seed=seed, what="costs"):
            self.add(
                seed=seed,
                what="costs",
                num_parameters={k: counts.num_parameters(s) for k, s in found.items()},
                macs={k: counts.macs(s, context.recipe.workload.sequence_length) for k, s in found.items()},
            )
        return list(found.values())

    def inherited(self, name: str, seed: int) -> None:
        """Trains the supernet of a setting and scores the subnetworks in it."""
        if self.has(seed=seed, setting=name):
            return
        context, run = self.open_run(name, seed)
        start = time.process_time()
        run_stages(run, context, last="supernet")
        seconds = time.process_time() - start
        supernet, space = load_supernet(run, context)
        found = {}
        for subnet in self.subnets(context, seed):
            supernet.activate(placed(subnet, space))
            found[subnet.key] = quality(supernet.model, context)
        self.add(seed=seed, setting=name, cpu_s=seconds, quality=found)

    def stand_alone(self, seed: int) -> None:
        """Trains each subnetwork alone, cut from the parent in importance order."""
        if self.has(seed=seed, setting="alone"):
            return
        context, run = self.open_run("default", seed)
        supernet = Supernet(context.load_model(run.parent).to(training_device()))
        train, task = context.splits.train, context.splits.task
        calibration = EvaluationSet.from_dataset(train.select(range(min(CALIBRATION_EXAMPLES, len(train)))), task, 32)
        batches = calibration.labelled_batches(CALIBRATION_EXAMPLES)
        order = order_by_importance(supernet, batches, calibration.labelled_batches(LAYER_EXAMPLES))
        space, found = search_space(context, order.layers), {}
        for subnet in self.subnets(context, seed):
            model = supernet.extract(placed(subnet, space))
            found[subnet.key] = quality(self.trained(model, context, run, "alone", seed), context)
        self.add(seed=seed, setting="alone", quality=found)

    def after_steps(self, steps: int, seed: int) -> None:
        """Trains what the default supernet gives each subnetwork for some steps more."""
        name = after(steps)
        if self.has(seed=seed, setting=name):
            return
        context, run = self.open_run("default", seed)
        supernet, space = load_supernet(run, context)
        found = {}
        for subnet in self.subnets(context, seed):
            model = supernet.extract(placed(subnet, space))
            found[subnet.key] = quality(self.trained(model, context, run, f"after-{steps}", seed, steps), context)
        self.add(seed=seed, setting=name, quality=found)

    def trained(self, model: Any, context: TaskContext, run: Run, name: str, seed: int, steps: int = -1) -> Any:
        """A model trained on, from its parent's outputs and labels: for the parent's epochs, or so many steps."""
        checkpoints, teacher = run.folder / name, context.load_model(run.parent)
        settings, splits = context.recipe.parent, context.splits
        trainer = model_trainer(
            model, settings, checkpoints, context.training_set(settings), splits.task, seed, teacher
        )
        trainer.args.max_steps, trainer.args.save_strategy = steps, "no"
        trainer.train()
        return model.eval()


def after(steps: int) -> str:
    """What subnetworks of the default supernet are called that were trained on."""
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
    """Quality and loss on the held-out split."""
    name = context.recipe.primary_metric
    found = score(model, context.splits.test, list(dict.fromkeys([name, "loss"])))
    return {"quality": found[name].value, "loss": found["loss"].value}


def print_tables(rows: Sequence[Row]) -> None:
    """Rank correlation with the stand-alone loss, and mean quality; mean and standard deviation over seeds."""
    alone = {row["seed"]: row["quality"] for row in rows if row.get("setting") == "alone"}
    print(f"seeds {sorted(alone)}, {len(next(iter(alone.values())))} subnetworks each")
    columns = ("", "mean quality", "mean loss", "Kendall tau", "Spearman", "tau among near-equal", "CPU s")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    there = {row.get("setting") for row in rows}
    for name in ("alone", *SETTINGS, *AS_LONG, *map(after, STEPS[1:])):
        if name not in there:
            continue
        mine = {row["seed"]: row for row in rows if row.get("setting") == name and row["seed"] in alone}
        keys = {seed: list(alone[seed]) for seed in mine}
        loss = {s: np.array([row["quality"][k]["loss"] for k in keys[s]]) for s, row in mine.items()}
        truth = {s: np.array([alone[s][k]["loss"] for k in keys[s]]) for s in mine}
        means = [np.mean([row["quality"][k]["quality"] for k in keys[s]]) for s, row in mine.items()]
        cells = [spread(means), spread([float(v.mean()) for v in loss.values()])]
        cells += correlations(loss, truth) if name != "alone" else ["", "", ""]
        seconds = [row["cpu_s"] for row in mine.values() if "cpu_s" in row]
        took = f"{np.mean(seconds):.0f}" if seconds else ""
        print(f"| {name} | {' | '.join(cells)} | {took} |")
    for cost in ("num_parameters", "macs"):
        known = {row["seed"]: row[cost] for row in rows if row.get("what") == "costs" and row["seed"] in alone}
        values = {s: -np.array([found[k] for k in alone[s]], dtype=float) for s, found in known.items()}
        truth = {s: np.array([alone[s][k]["loss"] for k in alone[s]]) for s in known}
        print(f"| ranked by {cost} | | | {' | '.join(correlations(values, truth))} | |")


def correlations(mine: dict[int, np.ndarray], truth: dict[int, np.ndarray]) -> list[str]:
    """Kendall tau, Spearman's rho, and tau over pairs at most some places apart in the truth."""
    taus = [kendalltau(mine[s], truth[s]).statistic for s in mine]
    rhos = [spearmanr(mine[s], truth[s]).statistic for s in mine]
    return [spread(taus), spread(rhos), spread([near(mine[s], truth[s]) for s in mine])]


def near(mine: np.ndarray, truth: np.ndarray) -> float:
    """Kendall's tau over the pairs that lie at most `NEAR` places apart in the truth."""
    order = np.argsort(truth)
    signs = [
        np.sign(mine[order[b]] - mine[order[a]])
        for a in range(len(order))
        for b in range(a + 1, min(a + 1 + NEAR, len(order)))
    ]
    return float(np.mean(signs))


def spread(values: Sequence[float]) -> str:
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def quiet_process() -> None:
    """Sets up a process that computes figures."""
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
    given = parser.parse_intermixed_args()
    if min(given.seeds, given.subnets, given.processes) < 1:
        parser.error("--seeds, --subnets and --processes must be at least 1.")
    study = Study(given.recipe, given.overrides, given.folder, given.subnets)
    if not given.table:
        spawn = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(given.processes, spawn, quiet_process) as pool,
            ThreadPoolExecutor(given.seeds) as seeds,
        ):
            list(seeds.map(lambda seed: study.run_seed(seed, pool), range(given.seeds)))
    print_tables(study.rows())


if __name__ == "__main__":
    main()

"""What an engineer would do by hand, at equal CPU time: drop layers of the parent, or scale it uniformly, and distil.

    python experiments/bench/by_hand.py experiments/quickstart/recipe.yaml --run runs/by-hand --seeds 3

For each seed it makes a run of the recipe (what the run holds is not done again), and adds up the CPU seconds of the
stages after the parent: supernet, profile, search and finish. Random search, the baseline, is not counted; the profile
of the first seed serves all, and counts for each. Each finished model has an equal share of the seconds, and each of
its rivals as much: the deepest layer drops that are at most 10 % slower when they are measured together, with layers
evenly spaced and with the most important ones, and the slowest such uniform scaling. Rivals are cut from the parent
and learn from labels and from the parent's logits, at a learning rate of their own; what is a rival of two models is
trained once. Then all of them, and the parent, get twins with int8 layers (`nas.supernets.int8_twin`). All are scored
on the held-out split. Their architectures are measured on the workload at the end, all of a seed in the same rounds;
delete `ratios.json` to measure again, and `by_hand.json` to choose rivals again: those that were trained are kept.

Prints one row per model and seed: how many times as fast as the parent, accuracy with its standard error, and the
paired difference to the finished model of the same budget with its standard error over the examples. Then the means
over the seeds against the best rival of each budget. Set threads: `OMP_NUM_THREADS=1`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nas.pipeline import STAGES, locked_run
from nas.recipe.schema import Recipe
from nas.runs.finished import read_finished
from nas.runs.progress import quiet_libraries
from nas.runs.run import Run
from nas.studies.study import open_studies
from nas.supernets.int8_twin import int8_twin, with_int8
from nas.supernets.load import load_supernet
from nas.supernets.supernet import Supernet
from nas.supernets.training import model_trainer
from nas.tasks.context import TaskContext
from predictors.measurement.budget import Budget
from predictors.measurement.measure import measure
from predictors.measurement.prepare import prepare
from search_spaces import SearchSpace, SubnetConfig
from search_spaces.layer_drop import drop_layers, evenly_spaced

TIMED = ("supernet", "profile", "search", "finish")
"""Stages whose CPU seconds are shared among the rivals."""
OURS, PARENT = "finished", "parent"
RIVALS = ("evenly spaced layers", "most important layers", "uniform scaling")
FLOAT, INT8 = "", " int8"
STEPS = (*TIMED, "rivals", "measure")
WARMUP = 0.06
"""Share of a training in which the learning rate rises."""
MANY = 10**9
ROWS, SCORES = "by_hand.json", "scores.json"


@dataclass
class Row:
    """One model of one seed.

    Attributes:
        budget: Number of the finished model that it stands beside; the parent has -1.
        name: `OURS`, one of `RIVALS` or `PARENT`.
        precision: `FLOAT` or `INT8`.
        subnet: Its architecture.
        hits: Whether each held-out example is classified correctly (examples,).
        ratio: Latency over the parent's.
    """

    budget: int
    name: str
    precision: str
    subnet: dict[str, Any]
    hits: list[bool]
    ratio: float = 1.0


def main() -> None:
    """Parses the command line, compares every seed and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--run", required=True, type=Path, help="Folder; one run for each seed is made in it.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=RIVALS)
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="Of the rivals.")
    parser.add_argument("--slower", type=float, default=1.1, help="How slow rivals may be, in latencies of ours.")
    parser.add_argument("--last", choices=STEPS, default=STEPS[-1], help="What to do last, of every seed.")
    arguments, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    quiet_libraries()
    folders = [arguments.run / f"seed-{seed}" for seed in range(arguments.seeds)]
    for seed, folder in enumerate(folders):
        earlier = [f"profile.earlier=[{folders[0]}]"] if seed else []
        recipe = Recipe.load(arguments.recipe, [*overrides, *earlier, f"seed={seed}"])
        run_timed(recipe, folder, arguments.last)
        if arguments.last in STEPS[-2:] and not (folder / ROWS).exists():
            rows = compare(recipe, folder, arguments.rivals, arguments.learning_rate, arguments.slower)
            (folder / ROWS).write_text(json.dumps(rows))
    if arguments.last == STEPS[-1]:
        seeds = [measured_rows(folder) for folder in folders]
        for seed, rows in enumerate(seeds):
            print_rows(seed, rows)
        print_means(seeds)


def run_timed(recipe: Recipe, folder: Path, last: str) -> None:
    """Runs the missing stages, as far as the last one; keeps the CPU seconds of each in the folder."""
    file = folder / "cpu_seconds.json"
    with locked_run(recipe, folder) as (context, run):
        seconds: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
        for stage in STAGES[: STEPS.index(last) + 2][: 1 + len(TIMED)]:
            if not stage.is_done(run):
                start = time.process_time()
                stage.run(run, context)
                seconds[stage.name] = seconds.get(stage.name, 0.0) + time.process_time() - start
                file.write_text(json.dumps(seconds))


def seconds_spent(folder: Path) -> dict[str, float]:
    """CPU seconds of each stage that counts."""
    seconds = {name: s for name, s in json.loads((folder / "cpu_seconds.json").read_text()).items() if name in TIMED}
    first = json.loads((folder.parent / "seed-0" / "cpu_seconds.json").read_text())
    made = {name: len(study.trials) for name, study in open_studies(Run(folder).study, Run(folder).recipe).items()}
    searched = seconds["search"] * made["search"] / (made["search"] + made["random"])
    return {**seconds, "profile": first["profile"], "search": searched}


def compare(recipe: Recipe, folder: Path, names: Sequence[str], rate: float, slower: float) -> list[dict[str, Any]]:
    """Chooses the rivals of a run and trains those that are new; scores all models and their int8 twins."""
    run, context = Run(folder), TaskContext(recipe)
    supernet, space = load_supernet(run, context)
    chosen = [m.subnet for m in read_finished(run) if m.source == "search"]
    budget = sum(seconds_spent(folder).values()) / max(len(chosen), 1)
    candidates = {name: subnets for name, subnets in rivals(space, run.layer_order).items() if name in names}
    ratio = latencies(run, context, {*chosen, *(subnet for subnets in candidates.values() for subnet in subnets)})
    models = {(-1, PARENT): supernet.parent}
    for number, subnet in enumerate(chosen):
        models[number, OURS] = subnet
        models |= {(number, n): slowest(each, ratio, slower * ratio[subnet]) for n, each in candidates.items()}
    teacher = context.load_model(run.parent).eval()

    def model_of(name: str, subnet: SubnetConfig) -> Any:
        if name in (OURS, PARENT):
            return context.load_model(run.parent if name == PARENT else run.finished / subnet.key).eval()
        model = Supernet(context.load_model(run.parent)).extract(subnet)
        distil(model, teacher, context, budget, rate)
        return model

    file, rows = folder / SCORES, list[Row]()
    for (number, name), subnet in models.items():
        known: dict[str, list[list[bool]]] = json.loads(file.read_text()) if file.exists() else {}
        key = f"{name in RIVALS}-{subnet.key}"
        if key not in known:
            model = model_of(name, subnet)
            known[key] = [correct(each, context) for each in (model, int8_twin(model, subnet, supernet))]
            file.write_text(json.dumps(known))
        for precision, shape, hits in zip((FLOAT, INT8), (subnet, with_int8(subnet)), known[key], strict=True):
            rows.append(Row(number, name, precision, shape.to_dict(), hits))
    return [vars(row) for row in rows]


def measured_rows(folder: Path) -> list[Row]:
    """The rows of a seed with their latencies, which are measured if they are not stored: a minute for all."""
    rows, file = [Row(**row) for row in json.loads((folder / ROWS).read_text())], folder / "ratios.json"
    subnets = [SubnetConfig.from_dict(row.subnet) for row in rows]
    if not file.exists():
        run = Run(folder)
        ratio = latencies(run, TaskContext(run.recipe), subnets)
        file.write_text(json.dumps([ratio[subnet] for subnet in subnets]))
    for row, value in zip(rows, json.loads(file.read_text()), strict=True):
        row.ratio = value
    seconds = seconds_spent(folder)
    print(
        f"{folder}: {', '.join(f'{name} {s:.0f} s' for name, s in seconds.items())} of CPU time, the same for rivals"
    )
    return rows


def latencies(run: Run, context: TaskContext, subnets: Iterable[SubnetConfig]) -> dict[SubnetConfig, float]:
    """Latencies of subnetworks over the parent's, all measured in the same rounds: a minute for all."""
    workload, supernet = run.recipe.workload, load_supernet(run, context)[0]
    inputs, distinct = context.dummy_inputs(workload), dict.fromkeys([supernet.parent, *subnets])
    calls = {subnet: prepare(supernet.extract(subnet), inputs, workload) for subnet in distinct}
    named = {subnet.key: call for subnet, call in calls.items()}
    timings = measure(named, calls[supernet.parent], workload, precision=0.02, budget=Budget.of_minutes(1.0))
    return {subnet: timings[subnet.key].ratio for subnet in distinct}


def rivals(space: SearchSpace, order: list[int]) -> dict[str, list[SubnetConfig]]:
    """What may stand beside a model, of each kind of `RIVALS`."""
    depths = range(space.parent.num_hidden_layers, 0, -1)
    important = [drop_layers(space.parent, sorted(order[:depth])) for depth in depths]
    return dict(zip(RIVALS, (evenly_spaced(space), important, list(space.uniform_scalings())), strict=True))


def slowest(subnets: Sequence[SubnetConfig], ratio: Mapping[SubnetConfig, float], limit: float) -> SubnetConfig:
    """The slowest one within a limit; the fastest of all if none is."""
    affordable = [subnet for subnet in subnets if ratio[subnet] <= limit]
    return max(affordable, key=ratio.__getitem__) if affordable else min(subnets, key=ratio.__getitem__)


class CpuBudget(TrainerCallback):
    """Ends a training after so many CPU seconds, which also set its learning rate: linear decay after a warm-up."""

    def __init__(self, seconds: float, trainer: Trainer) -> None:
        self.seconds, self.start = seconds, time.process_time()
        trainer.args.max_steps = MANY
        trainer.lr_scheduler = LambdaLR(trainer.create_optimizer(), lambda _: self.rate)
        trainer.add_callback(self)

    @property
    def share(self) -> float:
        """Share of the seconds that are over."""
        return (time.process_time() - self.start) / self.seconds

    @property
    def rate(self) -> float:
        """Learning rate, in units of its peak."""
        return max(0.0, min(self.share / WARMUP, (1 - self.share) / (1 - WARMUP)))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops when the time is over."""
        control.should_training_stop = self.share >= 1


def distil(model: Any, teacher: Any, context: TaskContext, seconds: float, rate: float) -> None:
    """Distils a model from logits for so many CPU seconds; the teacher's are kept from the first epoch on."""
    settings = context.recipe.finish.model_copy(update={"learning_rate": rate})
    model.requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        examples, task = context.training_set(settings), context.splits.task
        options = {"teacher": teacher, "temperature": settings.temperature}
        trainer = model_trainer(model, settings, Path(folder), examples, task, context.recipe.seed, **options)
        trainer.args.save_strategy = "no"
        CpuBudget(seconds, trainer)
        trainer.train()
        print(f"rival: {trainer.state.global_step} steps", flush=True)
    model.eval()


def correct(model: Any, context: TaskContext) -> list[bool]:
    """Whether each held-out example is classified correctly."""
    hits: list[bool] = []
    with torch.inference_mode():
        for batch in context.splits.test.batches:
            hits += (model(**batch).logits.argmax(-1) == batch["labels"]).tolist()
    return hits


def print_rows(seed: int, rows: Sequence[Row]) -> None:
    """Prints the models of one seed, each beside the finished model of its budget."""
    ours = {(row.budget, row.precision): np.array(row.hits, float) for row in rows if row.name == OURS}
    print(f"seed {seed}")
    for row in sorted(rows, key=lambda row: (row.precision, row.budget)):
        hits = np.array(row.hits, float)
        text = f"{row.name + row.precision:26} x{1 / row.ratio:5.2f}  {hits.mean():.4f} ± {error(hits):.4f}"
        if row.name in RIVALS:
            difference = ours[row.budget, row.precision] - hits
            text += f"  finished - it {difference.mean():+.4f} ± {error(difference):.4f}"
        print(f"{text}  {SubnetConfig.from_dict(row.subnet)}", flush=True)


def print_means(seeds: Sequence[Sequence[Row]]) -> None:
    """Prints for each budget and precision the mean over the seeds: speed, accuracy, and the difference to each rival.

    Also the difference at the rival's own speed, between the two finished models next to it. The error of a difference
    is that over the examples, of the mean over the seeds.
    """
    print(f"mean of {len(seeds)} seeds")
    table = {(s, row.budget, row.name, row.precision): row for s, rows in enumerate(seeds) for row in rows}
    keys = dict.fromkeys(key[1:] for key in table)
    for number, name, precision in sorted(keys, key=lambda key: (key[2], key[0])):
        of_seeds = {s: row for s in range(len(seeds)) if (row := table.get((s, number, name, precision)))}
        hits = np.mean([row.hits for row in of_seeds.values()], axis=0)
        speed = float(1 / np.mean([row.ratio for row in of_seeds.values()]))
        text = f"{name + precision:26} x{speed:5.2f}  {hits.mean():.4f}  {len(of_seeds)} seeds"
        if name in RIVALS:
            ours = np.mean([table[s, number, OURS, precision].hits for s in of_seeds], axis=0)
            text += f"  finished - it {as_difference(ours - hits)}"
            level = [finished_at(1 / row.ratio, seeds[s], precision) for s, row in of_seeds.items()]
            if all(each is not None for each in level):
                text += f", at its speed {as_difference(np.mean(level, axis=0) - hits)}"
        print(text)


def finished_at(speed: float, rows: Sequence[Row], precision: str) -> np.ndarray | None:
    """Share of hits on each example at a speed, as a line over its logarithm between finished models has it.

    That of the slowest one at slower speeds; None where all of them are slower.
    """
    ours = sorted((row for row in rows if row.name == OURS and row.precision == precision), key=lambda row: -row.ratio)
    speeds, hits = np.log([1 / row.ratio for row in ours]), np.array([row.hits for row in ours], float)
    if np.log(speed) > speeds[-1]:
        return None
    weights = [np.interp(np.log(speed), speeds, unit) for unit in np.eye(len(ours))]
    return np.asarray(weights) @ hits


def as_difference(values: np.ndarray) -> str:
    """The mean of paired differences with its standard error over the examples."""
    return f"{values.mean():+.4f} ± {error(values):.4f}"


def error(values: np.ndarray) -> float:
    """Standard error of a mean over examples."""
    return float(values.std() / len(values) ** 0.5)


if __name__ == "__main__":
    main()

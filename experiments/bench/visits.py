"""More models each known less well, or few known well: predictor errors on a recorded visit, by models and rounds.

    python experiments/bench/visits.py record FILE [--models 60] [--rounds 60]
    python experiments/bench/visits.py compare FILE

`record` times random subnetworks of the quickstart's space (random weights) beside the parent, in rounds, and keeps
the wall time and the thread's CPU time of every call. `compare` fits predictors on parts of the record. The truth of a
model is the median ratio of CPU times over all rounds. It also replays two ways to spend the same number of samples:
ten models at a time, each until its 95 % interval is within 3 % by the wall or 60 rounds are over, as before budgets;
and rounds over all models in random order by CPU time, as now.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np

from nas.recipe.schema import Recipe
from nas.runs.progress import quiet_libraries
from nas.supernets.space import search_space
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from predictors.latency.features import feature_names, features
from predictors.latency.predictor import LatencyPredictor, quick_error
from predictors.measurement.prepare import prepare
from predictors.measurement.rounds import measuring
from search_spaces import SearchSpace, SubnetConfig

RECIPE = Path(__file__).parents[1] / "quickstart" / "recipe.yaml"
CALLS = 3
MODELS, ROUNDS = (12, 24, 40), (1, 2, 4, 8, 16)
SEEDS = 3
PROFILED, GROUP, BUDGETS = 40, 10, (100, 200, 400, 800, 1600)
"""Models that a profile measures, those of a group, and numbers of samples."""


def quickstart() -> tuple[TaskContext, Supernet, SearchSpace]:
    """The quickstart's model with random weights, and its space."""
    quiet_libraries()
    context = TaskContext(Recipe.load(RECIPE))
    return context, Supernet(context.load_model()), search_space(context)


def record(file: Path, models: int, rounds: int) -> None:
    """Writes, for each round, the times in milliseconds of (reference before, model, reference after) by model."""
    context, supernet, space = quickstart()
    workload, rng = context.recipe.workload, Random(0)
    inputs = context.dummy_inputs(workload)
    subnets = list({(s := space.sample_mixed(rng)).key: s for _ in range(4 * models)}.values())[:models]
    calls = [prepare(supernet.extract(subnet), inputs, workload) for subnet in subnets]
    reference = prepare(supernet.extract(supernet.parent), inputs, workload)
    samples = []
    with measuring(workload):
        for call in (reference, *calls):
            sample(call)
        for number in range(rounds):
            before = sample(reference)
            for index in rng.sample(range(models), models):
                model, after = sample(calls[index]), sample(reference)
                samples.append({"round": number, "model": index, "before": before, "times": model, "after": after})
                before = after
    file.write_text(json.dumps({"subnets": [s.to_dict() for s in subnets], "samples": samples}))


def sample(call: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of the fastest of three calls after an untimed one: by the wall and by the CPU of this thread."""
    call()
    wall, cpu = [], []
    for _ in range(CALLS):
        started, started_cpu = time.perf_counter_ns(), time.thread_time_ns()
        call()
        cpu.append(time.thread_time_ns() - started_cpu)
        wall.append(time.perf_counter_ns() - started)
    return {"wall": min(wall) / 1e6, "cpu": min(cpu) / 1e6}


def compare(file: Path) -> None:
    """Prints a table of mean errors in percent for each clock."""
    data = json.loads(file.read_text())
    _, _, space = quickstart()
    subnets = [SubnetConfig.from_dict(subnet) for subnet in data["subnets"]]
    names, table = feature_names(space), features(space, subnets)
    n_rounds = 1 + max(s["round"] for s in data["samples"])
    ratios = {clock: np.full((n_rounds, len(subnets)), np.nan) for clock in ("wall", "cpu")}
    slow = []
    for s in data["samples"]:
        for clock, by_round in ratios.items():
            nearby = (s["before"][clock] + s["after"][clock]) / 2
            by_round[s["round"], s["model"]] = s["times"][clock] / nearby
        slow.append(s["before"]["wall"] / s["before"]["cpu"])
    truth = np.median(ratios["cpu"], axis=0)
    percentiles = np.percentile(slow, [10, 50, 90]).round(2)
    print(f"{len(subnets)} models, {n_rounds} rounds; wall over CPU time, 10, 50, 90 %: {percentiles}")
    print("clock models rounds  samples  error of the measurements %  error of the predictor % (all other models)")
    for clock, by_round in ratios.items():
        for models in (m for m in MODELS if m < len(subnets) - 5):
            for rounds in (r for r in ROUNDS if r <= n_rounds):
                measured, predicted, quick = [], [], []
                for seed in range(SEEDS):
                    rng = np.random.default_rng(seed)
                    order = rng.permutation(len(subnets))
                    chosen, others = order[:models], order[models:]
                    first = rng.integers(0, n_rounds - rounds + 1)
                    value = np.median(by_round[first : first + rounds][:, chosen], axis=0)
                    measured.append(np.mean(np.abs(value / truth[chosen] - 1)))
                    fitted = LatencyPredictor.fit(table[chosen], value, names=names)
                    predicted.append(np.mean(np.abs(fitted.predict(table[others]) / truth[others] - 1)))
                    quick.append(quick_error(table[chosen], value, names))
                print(
                    f"{clock:5} {models:6} {rounds:6} {models * rounds:8} {100 * np.median(measured):8.2f} "
                    f"{100 * np.median(predicted):8.2f}  (cross-validated {100 * np.median(quick):.2f})",
                    flush=True,
                )
    replay(space, subnets, ratios, truth)


def replay(space: SearchSpace, subnets: list[SubnetConfig], ratios: dict[str, np.ndarray], truth: np.ndarray) -> None:
    """Prints the predictor's error of both ways to measure, by budget; medians over seeds."""
    names, table = feature_names(space), features(space, subnets)
    print("samples  models by group, predictor's error %   models in rounds, predictor's error %")
    for budget in BUDGETS:
        found: dict[str, list[tuple[int, float]]] = {"groups": [], "rounds": []}
        for seed in range(2 * SEEDS):
            order = np.random.default_rng(seed).permutation(len(subnets))
            known, unknown = order[:PROFILED], order[PROFILED:]
            values = {
                "groups": by_groups(ratios["wall"][:, known], budget),
                "rounds": by_rounds(ratios["cpu"][:, known], budget),
            }
            for way, value in values.items():
                fitted = LatencyPredictor.fit(table[known][value > 0], value[value > 0], names=names)
                error = np.mean(np.abs(fitted.predict(table[unknown]) / truth[unknown] - 1))
                found[way].append((int((value > 0).sum()), 100 * float(error)))
        cells = [
            f"{np.median([m for m, _ in rows]):10.0f} {np.median([e for _, e in rows]):10.2f}"
            for rows in found.values()
        ]
        print(f"{budget:7} {cells[0]:>40} {cells[1]:>40}", flush=True)


def by_groups(ratios: np.ndarray, budget: int) -> np.ndarray:
    """The latency of each model, 0 if the samples did not suffice for its group."""
    values, left = np.zeros(ratios.shape[1]), budget
    for first in range(0, ratios.shape[1], GROUP):
        group = ratios[:, first : first + GROUP]
        for rounds in range(5, len(group) + 1):
            half_width = 1.96 * 1.25 * group[:rounds].std(0, ddof=1) / np.sqrt(rounds) / np.median(group[:rounds], 0)
            if (half_width <= 0.03).all():
                break
        if left < rounds * group.shape[1]:
            break
        left -= rounds * group.shape[1]
        values[first : first + GROUP] = np.median(group[:rounds], 0)
    if not values.any():  # not even the first group was ready
        rounds = max(1, budget // GROUP)
        values[:GROUP] = np.median(ratios[:rounds, :GROUP], 0)
    return values


def by_rounds(ratios: np.ndarray, budget: int) -> np.ndarray:
    """The latency of each model: its median over as many rounds as the samples suffice for."""
    rounds = min(max(1, budget // ratios.shape[1]), len(ratios))
    return np.asarray(np.median(ratios[:rounds], 0))


def main() -> None:
    """Records or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--models", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    if arguments.action == "record":
        record(arguments.file, arguments.models, arguments.rounds)
    else:
        compare(arguments.file)


if __name__ == "__main__":
    main()

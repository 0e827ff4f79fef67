"""Compares our sampler with Optuna's: hypervolume after few evaluations, and the engine's own time.

    python experiments/bench/search.py FOLDER [--samplers ...] [--problems ...] [--seeds 10]

runs what FOLDER/results.jsonl lacks and prints the tables of it. Nothing in FOLDER is needed to start.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from problems import SYNTHETIC, Problem, synthetic

from nas.encoding import Encoding
from nas.sampler import PlainProblem, SurrogateSampler

BUDGETS = (50, 100, 200, 500, 1000, 2000)

Make = Callable[[Problem, int], BaseSampler]


class Costs(PlainProblem):
    """All objectives but the first are known."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(Encoding(problem.distributions), len(problem.reference))
        self.evaluate = problem.evaluate

    def known(self, genomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = self.evaluate(genomes)
        values[:, 0] = np.nan
        return values, np.zeros(len(genomes))


SAMPLERS: dict[str, tuple[int, Make]] = {
    "SurrogateSampler": (
        200,
        lambda problem, seed: SurrogateSampler(problem.distributions, Costs(problem), seed=seed),
    ),
    "SurrogateSampler plain": (200, lambda problem, seed: SurrogateSampler(problem.distributions, seed=seed)),
    "RandomSampler": (200, lambda problem, seed: optuna.samplers.RandomSampler(seed=seed)),
    "NSGAIISampler": (2000, lambda problem, seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=50)),
    "NSGAIIISampler": (200, lambda problem, seed: optuna.samplers.NSGAIIISampler(seed=seed)),
    "TPESampler": (200, lambda problem, seed: optuna.samplers.TPESampler(seed=seed)),
    "TPESampler multivariate": (200, lambda problem, seed: optuna.samplers.TPESampler(seed=seed, multivariate=True)),
    "GPSampler": (100, lambda problem, seed: optuna.samplers.GPSampler(seed=seed)),
}
"""Name in the table -> the most evaluations it is run for, and how it is made."""


def run(problem: Problem, name: str, seed: int) -> list[dict[str, object]]:
    """One study, a result at each budget: the hypervolume, and CPU seconds of the engine alone up to there."""
    limit, make = SAMPLERS[name]
    study = optuna.create_study(directions=["minimize"] * len(problem.reference), sampler=make(problem, seed))
    encoding = Encoding(problem.distributions)
    values, found, spent = [], [], 0.0
    for number in range(1, limit + 1):
        start = time.process_time()
        trial = study.ask(problem.distributions)
        spent += time.process_time() - start
        values.append(problem.evaluate(encoding.encode([trial.params]))[0])
        start = time.process_time()
        study.tell(trial, values[-1].tolist())
        spent += time.process_time() - start
        if number in BUDGETS:
            volume = problem.volume(np.array(values))
            found.append({"budget": number, "volume": round(volume, 5), "seconds": round(spent, 2)})
    return [{"problem": problem.name, "sampler": name, "seed": seed, **result} for result in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("--problems", nargs="+", default=list(SYNTHETIC), choices=list(SYNTHETIC))
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    args.folder.mkdir(parents=True, exist_ok=True)
    results = args.folder / "results.jsonl"
    results.touch()
    problems = {name: synthetic(name, args.folder) for name in args.problems}
    for seed in range(args.seeds):
        for sampler in args.samplers:
            for problem in problems.values():
                done = {(r["problem"], r["sampler"], r["seed"]) for r in map(json.loads, results.open())}
                if (problem.name, sampler, seed) not in done:
                    rows = run(problem, sampler, seed)
                    with results.open("a") as file:
                        file.write("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()

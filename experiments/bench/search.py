"""Compares our sampler with Optuna's: hypervolume after few evaluations, and the CPU time of the search engine.

python experiments/bench/digits_vit.py FOLDER       # once: trains and tabulates the real supernet
python experiments/bench/search.py FOLDER           # runs what FOLDER/results.jsonl lacks, prints the tables
python experiments/bench/search.py FOLDER --table   # prints the tables only
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from problems import PROBLEMS, Problem

from nas.fronts.pareto import non_dominated
from nas.samplers.encoding import Encoding
from nas.samplers.problem import BlackBoxProblem, Candidates
from nas.samplers.surrogate_sampler import SurrogateSampler
from nas.studies.storage import batched_writes, open_storage
from predictors.surrogates import posterior_means

BUDGETS = (50, 100, 200, 500, 1000, 2000)
LONG, LAST = 5000, 500
"""Evaluations of the runs that time the engine, and how many of the last ones are timed separately."""

Result = dict[str, Any]


class Costs(BlackBoxProblem):
    """All objectives but the first are known, and which parameters of a search space mean the same."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(Encoding(problem.distributions), len(problem.reference))
        self.problem = problem

    def keys(self, vectors: np.ndarray) -> list[bytes]:
        space = self.problem.space
        return super().keys(vectors) if space is None else space.parameters.to_batch(vectors).row_keys()

    def describe(self, vectors: np.ndarray) -> Candidates:
        known, space = super().describe(vectors), self.problem.space
        if space is None:
            values = self.problem.evaluate(vectors)
            return replace(known, values=self._hide(values))
        features = space.parameters.encode(space.parameters.to_batch(vectors))
        return replace(known, values=self._hide(self.problem.evaluate(vectors)), features=features)

    @staticmethod
    def _hide(values: np.ndarray) -> np.ndarray:
        return np.concatenate([np.full((len(values), 1), np.nan), values[:, 1:]], axis=1)


OURS = "SurrogateSampler"
SAMPLERS: dict[str, tuple[int, Callable[[Problem, int], BaseSampler]]] = {
    OURS: (200, lambda problem, seed: SurrogateSampler(problem.distributions, Costs(problem), seed=seed)),
    f"{OURS}, no costs known": (200, lambda problem, seed: SurrogateSampler(problem.distributions, seed=seed)),
    "RandomSampler": (200, lambda problem, seed: optuna.samplers.RandomSampler(seed=seed)),
    "NSGAIISampler": (2000, lambda problem, seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=50)),
    "NSGAIIISampler": (200, lambda problem, seed: optuna.samplers.NSGAIIISampler(seed=seed)),
    "TPESampler multivariate": (200, lambda problem, seed: optuna.samplers.TPESampler(seed=seed, multivariate=True)),
    "TPESampler": (200, lambda problem, seed: optuna.samplers.TPESampler(seed=seed)),
    "GPSampler": (100, lambda problem, seed: optuna.samplers.GPSampler(seed=seed)),
}
"""Name in the table -> the most evaluations it is run for, and its constructor."""


def run(problem: Problem, name: str, seed: int, most: int) -> list[Result]:
    """One study in memory: at each budget, the hypervolume and the CPU seconds of the search without evaluations."""
    limit, make = SAMPLERS[name]
    vectors, failures, results, spent = [], 0, [], 0.0
    evaluations = _evaluations(problem, make(problem, seed), min(limit, most), None)
    for count, (cpu_s, vector, failed) in enumerate(evaluations, 1):
        spent += cpu_s
        failures += failed
        if not failed:
            vectors.append(vector)
        if count in BUDGETS:
            result = {"budget": count, "failures": failures, "cpu_s": round(spent, 2)}
            results.append(result | _quality(problem, np.array(vectors)))
    return [{"problem": problem.name, "sampler": name, "seed": seed, **result} for result in results]


def _quality(problem: Problem, vectors: np.ndarray) -> dict[str, float]:
    """The true hypervolume of all evaluated; of noisy problems, of the front as observed, and what it promises."""
    observed, errors = problem.observed(vectors)
    true = problem.evaluate(vectors)
    if not errors.any():
        return {"volume": round(problem.volume(true), 5)}
    observed_front = non_dominated(observed)
    known = Costs(problem).describe(vectors).features
    expected = np.column_stack([posterior_means(known, observed[:, 0], errors), observed[:, 1:]])
    front = non_dominated(expected)
    return {
        "volume": round(problem.volume(true[front]), 5),
        "luck": round(float((true[front, 0] - expected[front, 0]).mean()), 5),
        "observed_volume": round(problem.volume(true[observed_front]), 5),
        "observed_luck": round(float((true[observed_front, 0] - observed[observed_front, 0]).mean()), 5),
    }


def time_engine(problem: Problem, name: str, folder: Path) -> list[Result]:
    """One long study in a run's journal file: CPU milliseconds of the engine an evaluation, in all and at the end."""
    path = folder / f"{problem.name}-{time.time_ns()}.journal"
    storage = open_storage(None, path)
    spent = [cpu_s for cpu_s, _, _ in _evaluations(problem, SAMPLERS[name][1](problem, 0), LONG, storage)]
    path.unlink()
    mean_ms, last_ms = 1e3 * float(np.mean(spent)), 1e3 * float(np.mean(spent[-LAST:]))
    return [{"problem": problem.name, "sampler": name, "mean_ms": round(mean_ms, 1), "last_ms": round(last_ms, 1)}]


def _evaluations(
    problem: Problem, sampler: BaseSampler, limit: int, storage: BaseStorage | None
) -> Iterator[tuple[float, np.ndarray, bool]]:
    """CPU seconds of asking and telling, the vector (D,), and whether it failed, of one evaluation after another."""
    directions = ["minimize"] * len(problem.reference)
    study = optuna.create_study(storage=storage, directions=directions, sampler=sampler)
    encoding = Encoding(problem.distributions)
    for _ in range(limit):
        start = time.process_time()
        with batched_writes(study, durable=False):
            trial = study.ask(problem.distributions)
        ask_s = time.process_time() - start
        vectors = encoding.encode([trial.params])
        failed, (values, errors) = bool(problem.fails(vectors)[0]), problem.observed(vectors)
        start = time.process_time()
        with batched_writes(study, durable=True):
            if errors[0] > 0:
                trial.set_user_attr("standard_errors", [errors[0], *[0.0] * (len(directions) - 1)])
            if failed:
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, values[0].tolist())
        yield ask_s + time.process_time() - start, vectors[0], failed


def print_tables(results: list[Result]) -> None:
    """Medians and quartiles of the shares of the best known hypervolume; engine times."""
    for problem in dict.fromkeys(r["problem"] for r in results):
        print(f"\n**{problem}**\n\n| | seeds | " + " | ".join(map(str, BUDGETS)) + " | CPU s at 100 |")
        print("|---" * (len(BUDGETS) + 3) + "|")
        for sampler in SAMPLERS:
            rows = [r for r in results if (r["problem"], r["sampler"]) == (problem, sampler) and "budget" in r]
            if rows:
                cells = [_quartiles([r["volume"] for r in rows if r["budget"] == budget]) for budget in BUDGETS]
                seconds = [r["cpu_s"] for r in rows if r["budget"] == 100]
                took = f"{np.median(seconds):.1f}" if seconds else ""
                print(f"| {sampler} | {len({r['seed'] for r in rows})} | {' | '.join(cells)} | {took} |")
    timed = [r for r in results if "mean_ms" in r]
    if timed:
        print(f"\n| journal file, {LONG} evaluations | | CPU ms each | the last {LAST} |\n|---|---|---|---|")
    for r in timed:
        print(f"| {r['problem']} | {r['sampler']} | {r['mean_ms']} | {r['last_ms']} |")


def _quartiles(values: list[float]) -> str:
    if not values:
        return ""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{median:.3f} [{low:.3f}-{high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--engine", nargs="*", default=[OURS], choices=list(SAMPLERS), help="whose long runs to time")
    parser.add_argument("--most", type=int, default=LONG, help="evaluations of a study")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "results.jsonl"
    path.touch()

    def results() -> list[Result]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    def add(rows: list[Result]) -> None:
        with path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    if not args.table:
        problems = [PROBLEMS[name](args.folder) for name in args.problems]
        for seed in range(args.seeds):
            for sampler in args.samplers:
                for problem in problems:
                    if (problem.name, sampler, seed) not in {
                        (r["problem"], r["sampler"], r.get("seed")) for r in results()
                    }:
                        add(run(problem, sampler, seed, args.most))
        for sampler in args.engine:
            for problem in problems:
                if not any(
                    "mean_ms" in r and (r["problem"], r["sampler"]) == (problem.name, sampler) for r in results()
                ):
                    add(time_engine(problem, sampler, args.folder))
    print_tables(results())


if __name__ == "__main__":
    main()

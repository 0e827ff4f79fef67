"""A finished run goes on: more evaluations, a tighter constraint, another objective; what is done a second time.

    python -m experiments.bench.going_on FOLDER [KEY=VALUE ...]

The quickstart under two workloads, ``one`` image at a time and ``many``: 60 evaluations, then 120, then a bound on the
size that a third of the evaluated subnetworks exceeds, then the number of parameters as an objective. After each step
it prints what is new, and what was trained, scored or measured although it had been: weights that were written again,
subnetworks whose evaluation ran again (`Scorer` is counted), models that were scored on the held-out split or measured
again. Arguments override keys of the recipe, such as ``parent.epochs=2``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.stages.held_out import verified_file
from nas.studies.racing import EarlyStopping, Outcome, Scorer
from nas.studies.study import evaluated_points, open_studies
from search_spaces import SubnetConfig

RECIPE = Path(__file__).parents[1] / "quickstart" / "recipe.yaml"
WORKLOADS = {"one": {"batch_size": 1, "threads": 1}, "many": {"batch_size": 64, "threads": 1}}
OBJECTIVES = {"accuracy": "maximize", "latency_ms@one": "minimize", "latency_ms@many": "minimize"}
EVALUATIONS = 60, 120
STEPS = "the search", "twice the evaluations", "a tighter bound", "another objective"


@dataclass(frozen=True)
class Done:
    """What a run has done so far.

    Attributes:
        weights: File of weights -> when it was written, in nanoseconds.
        measured: Key of a subnetwork, stage and workload -> lines in the file of measurements.
        scored: Key of a model -> how often it was scored on the held-out split.
        evaluated: Key of a subnetwork -> how often its evaluation ran, and was completed.
        trials: Evaluations of the search.
    """

    weights: dict[Path, int]
    measured: Counter[tuple[str, str, str]]
    scored: Counter[str]
    evaluated: Counter[str]
    trials: int

    @classmethod
    def by(cls, run: Run, evaluated: Counter[str]) -> Done:
        """Reads the files of a run."""
        places = [run.parent, run.supernet, run.finished, *(target.predictor for target in run.targets)]
        files = [file for place in places for file in place.rglob("*") if file.is_file()]
        lines = [json.loads(line) for line in run.measurements.read_text().splitlines()]
        rows = [line for line in lines if line["stage"] != "anchor"]  # beside which each visit measures
        measured = Counter((row["key"], row["stage"], str(row["workload"])) for row in rows)
        scored = Counter(key for key, _ in verified_file(run).read())
        trials = len(evaluated_points(open_studies(run.study, run.recipe)["search"]))
        times = {file: file.stat().st_mtime_ns for file in files if file.suffix in (".safetensors", ".joblib")}
        return cls(times, measured, scored, Counter(evaluated), trials)

    def row(self, before: Done) -> str:
        """What is new since then, and what was done again, as cells of a table."""
        again = sum(self.weights.get(file, when) != when for file, when in before.weights.items())
        counts = (self.evaluated, before.evaluated), (self.scored, before.scored), (self.measured, before.measured)
        cells = [f"{len(self.weights) - len(before.weights)} / {again}"]
        for now, then in counts:
            cells.append(f"{len(now) - len(then)} / {sum(0 < then[key] < now[key] for key in then)}")
        return " | ".join([str(self.trials), *cells])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    evaluated = Counter[str]()
    Scorer.__call__ = _counted(Scorer.__call__, evaluated)  # type: ignore[method-assign]
    changed, run, before = dict[str, str](), None, Done({}, Counter(), Counter(), Counter(), 0)
    rows = ["| step | s | evaluations | weights | evaluated | scored | measured | one, many, both |", "|---" * 8 + "|"]
    file = _recipe(arguments.folder)
    for step in STEPS:
        changed |= _change(step, run)
        start = time.monotonic()
        overrides = [*arguments.overrides, *(f"{key}={value}" for key, value in changed.items())]
        run = search(Recipe.load(file, overrides), arguments.folder / "run")
        seconds, done = time.monotonic() - start, Done.by(run, evaluated)
        rows.append(f"| {step} | {seconds:.0f} | {done.row(before)} | {_fronts(run)} |")
        before = done
    print("\n".join(rows))


def _change(step: str, run: Run | None) -> dict[str, str]:
    """The keys of the recipe that a step changes, given the run so far."""
    if run is None:
        return {"search.evaluations": str(EVALUATIONS[0])}
    if step == "a tighter bound":
        sizes = [point.values["size_mb"] for point in evaluated_points(open_studies(run.study, run.recipe)["search"])]
        return {"constraints.size_mb": f"<= {np.quantile(sizes, 2 / 3):.4g}"}
    if step == "another objective":
        return {"objectives.num_parameters": "minimize"}
    return {"search.evaluations": str(EVALUATIONS[1])}


def _recipe(folder: Path) -> Path:
    """Writes the quickstart's recipe under both workloads into a folder."""
    data = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    del data["workload"], data["constraints"]
    data["model"] = str(RECIPE.parent / data["model"])
    data["task"] |= {name: f"{RECIPE.parent}/{data['task'][name]}" for name in ("train", "test")}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(
        yaml.safe_dump({**data, "workloads": WORKLOADS, "objectives": OBJECTIVES}, sort_keys=False), encoding="utf-8"
    )
    return file


def _fronts(run: Run) -> str:
    """How many models are on the front of each workload and on both, baselines apart."""
    fronts = [{point.key for point in run.front().under(target.name)} for target in run.targets]
    return ", ".join(str(len(keys)) for keys in (*fronts, set.intersection(*fronts)))


def _counted(
    call: Callable[[Scorer, SubnetConfig, EarlyStopping | None], Outcome], counts: Counter[str]
) -> Callable[[Scorer, SubnetConfig, EarlyStopping | None], Outcome]:
    """The evaluation of a subnetwork, counted; one that was stopped early is not done."""

    def evaluate(scorer: Scorer, subnet: SubnetConfig, early_stopping: EarlyStopping | None) -> Outcome:
        outcome = call(scorer, subnet, early_stopping)
        counts[subnet.key] += outcome.is_complete
        return outcome

    return evaluate


if __name__ == "__main__":
    main()

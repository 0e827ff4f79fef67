"""Law 9 for runs: what is damaged, another's or unreachable is named in one line, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Set
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from refusals import SEARCHED, Refused, contents, cut, read_lines
from samples import sampled

from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.stages.search import run_search
from nas.stages.verify import PASSES, run_verify
from nas.tasks.context import TaskContext


def forget(run: Path, *names: str) -> None:
    """Removes results of a run, so that their stages are due again."""
    for name in names:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_run_of_another_recipe(finished: tuple[Path, Path], refused: Refused) -> None:
    recipe, run = finished
    before = contents(run)
    says = ("another recipe", "parent.epochs: 9.0, was 4.0", "--run")
    refused("search", recipe, "parent.epochs=9", "search.evaluations=25", "--run", run, says=says)
    assert contents(run) == before


def test_a_second_process_on_the_same_run(finished: tuple[Path, Path], refused: Refused) -> None:
    recipe, run = finished
    before = contents(run)
    with FileLock(run / ".lock"):
        refused("search", recipe, "--run", run, says=("another process", str(run), "wait"))
    assert contents(run) == before


DAMAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "parent/model.safetensors": (("supernet", "predictor", *SEARCHED), "parent"),
    "supernet/model.safetensors": (SEARCHED, "supernet"),
    "supernet/importance.json": (SEARCHED, "supernet"),
    "predictor/predictor.json": (SEARCHED, "predictor/predictor.json"),
    "measurements.jsonl": (("predictor", *SEARCHED), "measurements.jsonl"),
    "study.log": (("verified.jsonl", "front.json", "report.html"), "study.log"),
    "verified.jsonl": (("front.json", "report.html"), "verified.jsonl"),
    "front.json": ((), "front.json"),
}
"""File to damage -> results that a killed search would not have yet, and what the way out says to delete; the knee's
export, which a process of its own checks, goes only where the weights do."""


def damage(file: Path) -> None:
    """Truncates a file that is read at once; puts a torn line into the middle of one that grows by lines."""
    if file.suffix in (".jsonl", ".log"):
        lines = file.read_bytes().splitlines(keepends=True)
        lines[2] = lines[2][:20] + b"\n"
        file.write_bytes(b"".join(lines))
    else:
        cut(file)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_result_is_named(name: str, finished: tuple[Path, Path], refused: Refused) -> None:
    recipe, run = finished
    later, delete = DAMAGES[name]
    forget(run, *later)
    damage(run / name)
    before = contents(run)
    refused("search", recipe, "--run", run, says=(f"`{run / delete}`", "again"))
    after = contents(run)
    assert after.keys() == before.keys() and all(after[file].startswith(data) for file, data in before.items())


TRAINED = ("parent/model.safetensors", "supernet/model.safetensors", "supernet/importance.json", "measurements.jsonl")
"""Those without which there is a training or everything to measure."""


@pytest.mark.parametrize("name", sampled(DAMAGES, lambda name: name not in TRAINED))
def test_deleting_a_damaged_result_helps(name: str, finished: tuple[Path, Path]) -> None:
    recipe, run = finished
    later, delete = DAMAGES[name]
    forget(run, *later)
    damage(run / name)
    forget(run, delete)
    search(Recipe.load(recipe), run)
    assert (run / "front.json").exists() and any((run / "exports").iterdir())


@pytest.mark.parametrize(
    "name", ["study.log", pytest.param("measurements.jsonl", marks=pytest.mark.full), "verified.jsonl"]
)
def test_a_line_that_a_kill_cut_short_is_done_again(name: str, finished: tuple[Path, Path]) -> None:
    recipe, run = finished
    forget(run, *DAMAGES[name][0])
    whole = (run / name).read_bytes()
    with open(run / name, "ab") as file:
        file.write(whole.splitlines()[-1][:-10])
    search(Recipe.load(recipe), run)
    assert (run / name).read_bytes().startswith(whole)
    assert (run / "front.json").exists()


def test_costs_that_nothing_reaches(finished: tuple[Path, Path], refused: Refused) -> None:
    recipe, run = finished
    forget(run, *SEARCHED)
    loaded = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**loaded, "constraints": {"size_mb": "<= 0.01"}}))
    kept = {name: value for name, value in contents(run).items() if name != "study.log"}
    says = ("the closest", "reaches size_mb 0.0", "`<= 0.01`", "Loosen")
    refused("search", recipe, "constraints.size_mb='<= 0.01'", "--run", run, says=says)
    assert {name: contents(run)[name] for name in kept} == kept


TIMES = ("ratio", "ratio_low", "ratio_high", "raw_ms", "latency_ms", "latency_ms_p10", "latency_ms_p90")


def slow_down(run: Run, keys: Set[str], times: float) -> None:
    """Rewrites the measurements of these exports, as if each had taken so many times as long."""
    rows = read_lines(run.measurements)
    for row in rows:
        if row["stage"] in PASSES and row["key"] in keys:
            row |= {name: row[name] * times for name in TIMES}
    run.measurements.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_a_latency_constraint_is_judged_on_the_measured_exports(finished: tuple[Path, Path]) -> None:
    """Everything is far within the constraint as predicted; half of it takes a hundred times as long as measured."""
    _, path = finished
    run = Run(path)
    before = {point.key: point.values["latency_ms"] for point in run.verified_points()}
    bound, slow = 10 * max(before.values()), set(sorted(before)[1::2])
    slow_down(run, slow, 100.0)
    forget(path, "front.json", "report.html", "exports")
    loaded = yaml.safe_load((path / "recipe.yaml").read_text())
    (path / "recipe.yaml").write_text(yaml.safe_dump({**loaded, "constraints": {"latency_ms": f"<= {bound}"}}))
    context = TaskContext(Run(path).recipe)
    run_search(Run(path), context)  # what it has evaluated is judged anew
    run_verify(Run(path), context)
    result = {point.key: point for point in Run(path).verified_points() if point.key in before}
    assert {point.feasible for point in result.values()} == {True, False}
    assert all(p.feasible == (key not in slow) == (p.values["latency_ms"] <= bound) for key, p in result.items())
    assert {point.values["latency_ms"] <= bound for point in Run(path).front()} == {True}


def test_a_metric_that_nothing_reaches(finished: tuple[Path, Path], refused: Refused) -> None:
    recipe, run = finished
    forget(run, *SEARCHED)
    loaded = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**loaded, "constraints": {"loss": "<= 0"}}))
    kept = contents(run)
    says = ("no subnetwork meets", "closest of 24 reaches loss", "`<= 0`", "Loosen")
    refused("search", recipe, "constraints.loss='<= 0'", "--run", run, says=says)
    assert {name: contents(run)[name] for name in kept} == kept


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "{empty}"), ("run", "recipe.yaml", "nas search")),
        (("show", "{none}"), ("run", "recipe.yaml", "nas search")),
        (("export", "{empty}", "--out", "{new}"), ("run", "recipe.yaml", "nas search")),
        (("show", "{run}", "--where", "latency <= 5"), ("`latency`", "did you mean `latency_ms`")),
        (("show", "{run}", "--where", "fast"), ("condition", "fast", "latency_ms <= 5")),
        (("export", "{run}", "--pick", "knees", "--out", "{new}"), ("knees", "did you mean `knee`")),
        (("export", "{run}", "--pick", "accuracy > 2", "--out", "{new}"), ("accuracy > 2", "closest", "loosen")),
        (("export", "{run}", "--out", "{empty}"), ("is not an export", "--out")),
        (("finetune", "{empty}", "{recipe}", "--run", "{run}"), ("must be an export", "subnet.json")),
        (("bench", "no-such/bert", "--workload", "{recipe}"), ("no-such/bert", "spelling")),
        (("bench", "no-such/bert", "--workload", "{recipe}", "--precision", "2"), ("between 0 and 1", "got 2")),
        (("bench", "no-such/bert", "--workload", "{recipe}", "--csv", "{new}/b.csv"), ("`--csv`", "new/b.csv")),
        (("bench", "no-such/bert", "--workload", "{recipe}", "--csv", "{empty}"), ("`--csv`", "empty", "a file")),
        (("compare", "{run}", "{run}", "--out", "{new}/plot.html"), ("`--out`", "new/plot.html", "create the folder")),
        (("profile", "{recipe}", "--run", "{run}", "--export", "{new}"), ("is measured on this device", "--run")),
        (("profile", "{recipe}", "--export", "{new}", "--import", "{empty}"), ("two commands", "in between")),
        (("profile", "{recipe}", "--run", "{none}", "--import", "{empty}"), ("recipe.yaml", "nas search")),
        (("profile", "{recipe}", "--run", "{run}", "--import", "{empty}"), ("plan.json", "--export")),
    ],
)
def test_folders_and_picks_that_cannot_be(
    arguments: tuple[str, ...], says: tuple[str, ...], finished: tuple[Path, Path], refused: Refused, tmp_path: Path
) -> None:
    recipe, _ = finished
    (tmp_path / "empty").mkdir()
    places = {name: tmp_path / name for name in ("empty", "none", "new", "run")} | {"recipe": recipe}
    before = contents(tmp_path)
    refused(*(argument.format(**places) for argument in arguments), says=says)
    assert contents(tmp_path) == before and not (tmp_path / "new").exists()

"""Law 7: kill `nas search` in any stage, run the same command again, and nothing finished is done twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from command import Command
from optuna.trial import TrialState
from refusals import read_lines

from nas.cli import app
from nas.fronts.front import ParetoFront
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.reports.summary import seeds_line
from nas.runs.run import Run
from nas.stages.supernet import run_supernet
from nas.stages.verify import run_verify
from nas.studies.pick import front_so_far
from nas.studies.study import STUDIES, evaluated_points, open_studies
from nas.supernets.training import last_complete_checkpoint
from nas.tasks.context import TaskContext
from search_spaces import InputError

STAGES = ("parent", "supernet", "predictor", "front.json", "report.html")
"""The result of each stage, in order."""


def heed_ctrl_c() -> None:
    """A shell starts background jobs with Ctrl-C ignored, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop_when(
    process: Command | subprocess.Popen[str], seen: Callable[[], bool], how: signal.Signals = signal.SIGKILL
) -> str:
    """Sends a signal once something is seen; returns what the process wrote to standard error."""
    deadline = time.monotonic() + 240
    while not seen():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the stage was never reached"
        time.sleep(0.01)
    process.send_signal(how)
    return process.communicate(timeout=60)[1]


def identity(path: Path) -> dict[str, tuple[int, int, bytes]]:
    """File -> inode, time of the last change and bytes."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file): (file.stat().st_ino, file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def finished_stages(run: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything that the finished stages of a run have written."""
    return {k: v for name in STAGES if (run / name).exists() for k, v in identity(run / name).items()}


def lines(path: Path) -> int:
    """Whole lines of a file that may not exist yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def evaluations(recipe: Recipe, run: Run) -> dict[str, list[tuple[str, dict[str, float]]]]:
    """Study -> key and values of each finished trial, oldest first."""
    return {
        name: [(p.key, p.values) for p in evaluated_points(open_studies(run.study, recipe)[name])]
        if run.study.exists()
        else []
        for name in STUDIES
    }


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


def copy_results(uninterrupted_run: Path, run: Path, *results: str) -> None:
    """Copies these results of an uninterrupted run to a new run."""
    run.mkdir()
    for name in ("recipe.yaml", "environment.json", *results):
        (shutil.copytree if (uninterrupted_run / name).is_dir() else shutil.copy2)(
            uninterrupted_run / name, run / name
        )


def checkpoints(run: Path, stage: str) -> list[Path]:
    """Checkpoints of a training that were written to the end, oldest first."""
    result = [p for p in (run / f"{stage}.partial" / "checkpoints").glob("*") if (p / "trainer_state.json").exists()]
    return sorted(result, key=lambda path: int(path.name.split("-")[1]))


TRAINED = ("parent", "supernet", "measurements.jsonl", "predictor")
KILLS: dict[str, tuple[tuple[str, ...], Callable[[Path], bool]]] = {
    "parent": (("measurements.jsonl",), lambda run: len(checkpoints(run, "parent")) == 2),
    "supernet": (("measurements.jsonl", "parent"), lambda run: len(checkpoints(run, "supernet")) == 2),
    "profile": (("parent", "supernet"), lambda run: lines(run / "measurements.jsonl") >= 9),
    "search": (TRAINED, lambda run: lines(run / "study.log") >= 30),
    "uniform": (TRAINED, lambda run: count(run, '"study_id":1') > 4),
    "random": (TRAINED, lambda run: count(run, '"study_id":2') > 4),
    "verify": ((*TRAINED, "study.log", "trials.csv"), lambda run: any(run.glob(".verify-*/model.safetensors"))),
    "verified": ((*TRAINED, "study.log", "trials.csv"), lambda run: lines(run / "verified.jsonl") >= 1),
    "report": (
        (*TRAINED, "study.log", "trials.csv", "verified.jsonl", "front.json"),
        lambda run: any(run.glob(".report*")) or (run / "report.html").exists(),
    ),
    "export": (
        (*TRAINED, "study.log", "trials.csv", "verified.jsonl", "front.json", "report.html"),
        lambda run: any(run.glob("exports/.*.partial/*.safetensors")),
    ),
}
"""Stage -> results it starts from, and what is seen in the run once it is under way."""


def count(run: Path, text: str) -> int:
    """Lines of the study file that hold a text."""
    return (run / "study.log").read_text().count(text) if (run / "study.log").exists() else 0


MARKS = dict.fromkeys(("supernet", "profile", "export"), pytest.mark.slow)
MARKS |= dict.fromkeys(("parent", "uniform", "random", "verified", "report"), pytest.mark.full)


@pytest.mark.parametrize("stage", [pytest.param(s, marks=[MARKS[s]] if s in MARKS else []) for s in KILLS])
def test_a_killed_search_resumes(stage: str, uninterrupted_run: tuple[Path, Path], tmp_path: Path) -> None:
    recipe_file, uninterrupted = uninterrupted_run
    results, under_way = KILLS[stage]
    run = tmp_path / "run"
    copy_results(uninterrupted, run, *results)
    stop_when(Command("search", recipe_file, "--run", run), lambda: under_way(run))
    assert not any((run / "exports").glob("[!.]*")), "the search had ended before it was killed"
    resumes_without_loss(recipe_file, run, uninterrupted, stage)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(30))
def test_a_kill_at_any_moment_loses_nothing(seed: int, uninterrupted_run: tuple[Path, Path], tmp_path: Path) -> None:
    recipe_file, uninterrupted = uninterrupted_run
    random, run = Random(seed), tmp_path / "run"
    stage = random.choice(list(KILLS))
    copy_results(uninterrupted, run, *KILLS[stage][0])
    process, moment = Command("search", recipe_file, "--run", run), time.monotonic() + random.uniform(0, 15)
    while process.poll() is None and time.monotonic() < moment:
        time.sleep(0.01)
    if process.poll() is None:
        process.send_signal(random.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
    process.communicate()
    resumes_without_loss(recipe_file, run, uninterrupted, stage)


def resumes_without_loss(recipe_file: Path, run: Path, uninterrupted: Path, stage: str) -> None:
    """Resumes a stopped run; asserts that what was finished stays, is not made again, and ends as if uninterrupted."""
    before, recipe = finished_stages(run), Recipe.load(recipe_file)
    known = {file.name: file.read_bytes() for file in run.glob("*.jsonl")}
    tried = evaluations(recipe, Run(run)) if (run / "environment.json").exists() else {name: [] for name in STUDIES}
    newest = [path.name for path in checkpoints(run, stage)[-1:]]

    done = search(recipe, run)

    assert finished_stages(run).items() >= before.items()
    for name, data in known.items():
        assert (run / name).read_bytes().startswith(data[: data.rfind(b"\n") + 1])
    for name, result in evaluations(recipe, done).items():
        assert result[: len(tried[name])] == tried[name]
        if stage != "profile":  # which measures anew what was not stored
            assert result == evaluations(recipe, Run(uninterrupted))[name]
    for study in open_studies(done.study, recipe).values():
        unfinished = study.get_trials(deepcopy=False, states=(TrialState.FAIL, TrialState.RUNNING))
        assert len(unfinished) <= 1, "only the evaluation in flight may be lost"
    if newest:
        same = (run / stage / "model.safetensors").read_bytes()
        assert same == (uninterrupted / stage / "model.safetensors").read_bytes()
    assert any((run / "exports").iterdir())
    for name, rows in ((name, read_lines(run / name)) for name in known):
        n_known = known[name].count(b"\n")
        done = {(row["key"], row.get("stage")) for row in rows[:n_known]}
        again = {(row["key"], row.get("stage")) for row in rows[n_known:]} & done
        assert not {stage for _, stage in again} - {"anchor"}, f"{name} has rows made twice"
    assert not [p for pattern in ("*.partial", ".verify-*", ".*.tmp") for p in run.glob(pattern)]


@pytest.fixture
def half_trained(uninterrupted_run: tuple[Path, Path], shelf: Path, tmp_path: Path) -> Run:
    """A run that was killed in its supernet training, after two checkpoints."""
    recipe, uninterrupted = uninterrupted_run
    killed = shelf / "killed"
    if not killed.exists():
        copy_results(uninterrupted, killed, "parent")
        stop_when(Command("search", recipe, "--run", killed), lambda: len(checkpoints(killed, "supernet")) == 2)
    return Run(shutil.copytree(killed, tmp_path / "run"))


OTHERS = [
    pytest.param(name, marks=pytest.mark.full) for name in ("optimizer.pt", "scheduler.pt", "trainer_state.json")
]


@pytest.mark.parametrize("file", ["model.safetensors", *OTHERS])
def test_a_truncated_checkpoint_is_ignored(file: str, half_trained: Run, uninterrupted_run: tuple[Path, Path]) -> None:
    older, newest = checkpoints(half_trained.folder, "supernet")[-2:]
    os.truncate(newest / file, (newest / file).stat().st_size // 2)
    assert last_complete_checkpoint(newest.parent) == older
    run_supernet(half_trained, TaskContext(half_trained.recipe))
    same = (half_trained.supernet / "model.safetensors").read_bytes()
    assert same == (uninterrupted_run[1] / "supernet" / "model.safetensors").read_bytes()


def test_a_run_stopped_by_ctrl_c_resumes(uninterrupted_run: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, uninterrupted = uninterrupted_run
    run = tmp_path / "run"
    copy_results(uninterrupted, run, "parent", "measurements.jsonl")
    process = Command("search", recipe, "--run", run)
    message = stop_when(process, lambda: bool(checkpoints(run, "supernet")), signal.SIGINT)
    assert process.returncode == 2
    assert message == "nas: stopped; run the same command again to resume.\n"
    before, stopped = finished_stages(run), Run(run)
    run_supernet(stopped, TaskContext(stopped.recipe))
    assert finished_stages(run).items() >= before.items()
    same = (run / "supernet" / "model.safetensors").read_bytes()
    assert same == (uninterrupted / "supernet" / "model.safetensors").read_bytes()


def test_the_lock_of_a_killed_process_blocks_nobody(uninterrupted_run: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = Recipe.load(uninterrupted_run[0])
    shutil.copy(uninterrupted_run[1] / "study.log", tmp_path)
    (tmp_path / "study.log.lock").touch()
    begin = time.monotonic()
    assert evaluated_points(open_studies(tmp_path / "study.log", recipe)["search"])
    assert time.monotonic() - begin < 15, "waited until the lock was too old"


def test_a_finished_search_goes_on_with_more_evaluations(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = finished
    before = Run(folder)
    kept = [before.parent, before.supernet, before.predictor, before.finished]
    files = {file: file.stat().st_mtime_ns for place in kept for file in place.rglob("*.safetensors")}
    trials = {name: evaluated_points(study) for name, study in open_studies(before.study, before.recipe).items()}
    front, measured = before.front(), read_lines(before.measurements)
    run = search(Recipe.load(path, ["search.evaluations=32"]), folder)
    printed = capsys.readouterr().out
    assert "goes on with search.evaluations: 32, was 24" in printed and "the earlier front is front-1.json" in printed
    assert ParetoFront.from_dict(json.loads((folder / "front-1.json").read_text())["front"]) == front
    assert all(file.stat().st_mtime_ns == time for file, time in files.items()), "something is trained twice"
    for name, study in open_studies(run.study, run.recipe).items():
        points = evaluated_points(study)
        assert points[: len(trials[name])] == trials[name] and len(points) >= len(trials[name])
    assert len(evaluated_points(open_studies(run.study, run.recipe)["search"])) == 32
    rows = read_lines(run.measurements)
    assert rows[: len(measured)] == measured
    keys = [(row["key"], row["stage"]) for row in rows if "stage" in row]
    assert len(keys) == len(set(keys)), "something is measured twice"


def test_a_constraint_and_an_objective_are_changed_and_nothing_is_trained_scored_or_measured_twice(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = finished
    before = Run(folder)
    kept = [before.parent, before.supernet, before.predictor, before.finished]
    files = {file: file.stat().st_mtime_ns for place in kept for file in place.rglob("*.safetensors")}
    points = evaluated_points(open_studies(before.study, before.recipe)["search"])
    measured, scored = read_lines(before.measurements), read_lines(before.verified)
    limit = max(point.values["size_mb"] for point in points) * 0.99
    monkeypatch.setattr("nas.studies.racing.Scorer.__call__", lambda *_: pytest.fail("something is evaluated twice"))
    objectives = "objectives={accuracy: maximize, latency_ms: minimize, num_parameters: minimize}"
    run = search(Recipe.load(path, [f"constraints.size_mb=<= {limit}", objectives, "finish.models=0"]), folder)
    printed = capsys.readouterr().out
    assert (
        "goes on with constraints.size_mb: <= " in printed
        and "objectives.num_parameters: minimize, was not set" in printed
    )
    assert "None" not in printed
    assert "the earlier front is front-1.json" in printed
    assert "evaluations over, judged by the objectives and constraints of now" in printed
    assert all(file.stat().st_mtime_ns == time for file, time in files.items()), "something is trained twice"
    assert [p.key for p in evaluated_points(open_studies(run.study, run.recipe)["search"])] == [p.key for p in points]
    assert run.front().objectives.keys() == {"accuracy", "latency_ms", "num_parameters"}
    assert all(point.values["size_mb"] <= limit for point in run.front())
    for name, rows in ((run.measurements, measured), (run.verified, scored)):
        now = read_lines(name)
        assert now[: len(rows)] == rows
        keys = [(row["key"], row.get("stage")) for row in now if row.get("stage") != "anchor"]
        assert len(keys) == len(set(keys)), "something is measured or scored twice"


def test_another_supernet_keeps_the_parent_and_the_latencies(finished: tuple[Path, Path]) -> None:
    path, folder = finished
    before = Run(folder)
    parent, predictor, weights = identity(before.parent), identity(before.predictor), identity(before.supernet)
    front = before.front()
    recipe = Recipe.load(path, ["supernet.epochs=1", "finish.models=0"])
    run = Run.open(folder, recipe)
    assert identity(run.parent) == parent and identity(run.predictor) == predictor
    assert not any(file.exists() for file in run.depends_on_weights[1:])
    moved = {Path(file).name: data for file, data in identity(folder / "earlier-1" / "supernet").items()}
    assert moved == {Path(file).name: data for file, data in weights.items()}
    assert ParetoFront.from_dict(json.loads((folder / "front-1.json").read_text())["front"]) == front
    run_supernet(run, TaskContext(run.recipe))
    assert identity(run.parent) == parent and run.supernet.exists()


def test_verify_keeps_its_budget_and_the_same_command_goes_on(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = finished
    run = Run(folder)
    everything = {point.key for point in run.verified_points()}
    measured = [row for row in read_lines(run.measurements) if row["stage"] not in ("export", "repeat")]
    run.measurements.write_text("".join(json.dumps(row) + "\n" for row in measured))
    for file in (run.verified, run.front_file):
        file.unlink()
    recipe, counts = Recipe.load(path, ["verify.minutes=1e-9"]), [0]
    while counts[-1] < len(everything):
        run_verify(run, TaskContext(recipe))
        counts.append(len({point.key for point in run.verified_points()}))
        left = len(everything) - counts[-1]
        assert run.n_unverified == left and not run.report.exists() and len(run.front())
        assert (f"{left} are left and stay as predicted" in capsys.readouterr().out) == (left > 0)
        assert 0 < counts[-1] - counts[-2] <= 2, "the parent and one subnetwork, whatever the time; then two more"
    assert {point.key for point in run.verified_points()} == everything
    lines = read_lines(run.verified)
    assert len(lines) == len({line["key"] for line in lines}), "nothing is scored twice"


def test_a_front_that_is_not_verified_is_shown_and_exported_as_predicted(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = Run(finished[1])
    run.front_file.unlink()
    app(["show", str(run.folder)], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "searched and not verified yet" in printed and "Latency predicted, metrics on the search split" in printed
    app(["export", str(run.folder), "--out", str(tmp_path / "knee")], standalone_mode=False)
    info = json.loads((tmp_path / "knee" / "subnet.json").read_text())
    assert info["key"] == front_so_far(run).knee().key and not info["measured"]
    assert "Latency predicted" in (tmp_path / "knee" / "README.md").read_text()


@pytest.mark.parametrize(
    ("constraint", "resolved"),
    [("accuracy=>= parent + 2", r">= [23]\.\d*"), ("latency_ms=<= 50%, >= 60%", r"<= \d*\.\d*, >= \d*\.\d*")],
)
def test_bounds_that_no_value_meets_beside_the_parents_stop_the_search_before_it_evaluates(
    constraint: str, resolved: str, finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = finished
    name = constraint.partition("=")[0]
    with pytest.raises(
        InputError, match=rf"`constraints.{name}` must be a bound that a value .* but got `{resolved}`"
    ):
        search(Recipe.load(path, [f"constraints.{constraint}", "finish.models=0"]), folder)
    assert "evaluations over" not in capsys.readouterr().out


def test_bounds_in_the_parents_terms_hold_against_its_values_on_each_split(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = finished
    constraints = "constraints={accuracy: '>= parent - 0.3', size_mb: '>= 10%, <= 90%'}"
    run = search(Recipe.load(path, [constraints, "finish.models=0", "search.seeds=2"]), folder)
    assert len(run.results()["seeds"]) == 2 and "of 2 searches, as predicted" in seeds_line(run.results())
    assert '"study":"repeat1"' in run.report.read_text()
    intervals = run.results()["hypervolume_interval"]
    assert intervals.keys() == {"search", "uniform", "random", "sampler", "gain"}
    assert all(low <= high for low, high in intervals.values())
    searched = json.loads(run.parent_values.read_text())
    parent = next(point.values for point in run.verified_points() if point.source == "parent")
    printed = " ".join(capsys.readouterr().out.split())
    assert f"accuracy >= {searched['accuracy'] - 0.3:g} (`>= parent - 0.3`" in printed
    assert f"accuracy >= {parent['accuracy'] - 0.3:g} (`>= parent - 0.3`" in printed
    for points, of_parent in (
        (evaluated_points(open_studies(run.study, run.recipe)["search"]), searched),
        ([point for point in run.verified_points() if point.source != "parent"], parent),
    ):
        assert {point.feasible for point in points} == {True, False}
        for point in points:
            fits = 0.1 * of_parent["size_mb"] <= point.values["size_mb"] <= 0.9 * of_parent["size_mb"]
            assert point.feasible == (fits and point.values["accuracy"] >= of_parent["accuracy"] - 0.3)

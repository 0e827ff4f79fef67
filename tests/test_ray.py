"""A search on a real Ray cluster: several nodes on loopback, of which workers, a node and the driver are killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch
from stand_in_search import executed, states
from toys import bert, text_inputs

from experiments.bench.stand_in import LoadedEvaluator, StandIn, stand_in_evaluator, stand_in_recipe
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.studies.racing import Outcome
from nas.studies.search_loop import EvaluationScheduler, build_queues
from nas.studies.study import evaluated_points, open_studies
from nas.supernets.supernet import Supernet
from nas.tasks.evaluation import EvaluationSet
from search_spaces import InputError

pytest.importorskip("ray")

ROOT = Path(__file__).parent.parent
EVALUATIONS = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """One ``ray start`` with its processes in a group of its own."""

    def __init__(self, *arguments: str, home: Path) -> None:
        command = ["ray", "start", "--block", "--disable-usage-stats", "--object-store-memory", "80000000", *arguments]
        program = [sys.executable, "-m", "ray.scripts.scripts", *command[1:]]
        self.process = subprocess.Popen(
            program,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**environment(home), "RAY_AUTH_MODE": "token"},
        )

    def processes(self) -> list[psutil.Process]:
        """All its processes."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def joined(self) -> bool:
        """Whether its scheduler runs."""
        assert self.process.poll() is None, "`ray start` has ended"
        return any(process.name() == "raylet" for process in self.processes())

    def kill(self) -> None:
        """Ends the node's processes at once, as a lost machine does."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


def environment(home: Path) -> dict[str, str]:
    """A home of its own: its token of Ray's authentication is only this cluster's."""
    return {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home of the user whose cluster it is, with the token that Ray asks of drivers and nodes."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    return folder


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[tuple[str, list[Node]]]:
    """A head that evaluates nothing and two nodes with one worker each; token authentication is on."""
    address = f"127.0.0.1:{free_port()}"
    port = address.rpartition(":")[2]
    nodes = [Node("--head", f"--port={port}", "--include-dashboard=false", "--num-cpus=0", home=home)]
    try:
        wait_for(lambda: listens(int(port)) and nodes[0].joined(), 120)
        for _ in "ab":
            nodes.append(Node(f"--address={address}", "--num-cpus=1", home=home))
            wait_for(nodes[-1].joined, 120)
            time.sleep(2)
        yield address, nodes
    finally:
        for node in reversed(nodes):
            node.kill()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], bool], seconds: float, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.02)


def driver(folder: Path, address: str, home: Path, *more: str, seconds: float = 0.4) -> subprocess.Popen[str]:
    """A search of stand-ins in a process of its own."""
    command = [sys.executable, "-m", "experiments.bench.stand_in", str(folder), "--ray", address, *more]
    command += ["--evaluations", str(EVALUATIONS), "--seconds", str(seconds), "--workers", "2"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def lines(folder: Path, event: str) -> list[list[str]]:
    log = folder / "evaluations.log"
    lines_of_log = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [line for line in lines_of_log if line[0] == event]


def evaluated(folder: Path, recipe: Recipe) -> dict[str, list[tuple[str, dict[str, float]]]]:
    """Study -> key and values of each finished evaluation, oldest first."""
    studies = open_studies(folder / "study.log", recipe)
    return {name: [(p.key, p.values) for p in evaluated_points(study)] for name, study in studies.items()}


@pytest.mark.slow
def test_a_subnetwork_that_kills_its_worker_is_the_only_one_that_fails(
    cluster: tuple[str, list[Node]], home: Path, tmp_path: Path
) -> None:
    recipe, folder = stand_in_recipe(EVALUATIONS), tmp_path / "run"
    deadly = stand_in_evaluator(recipe)[0].uniform_scalings()[-1].key
    process = driver(folder, cluster[0], home, "--deadly", deadly, seconds=0.01)
    assert process.wait(540) == 0, process.communicate()[1]
    studies, points = open_studies(folder / "study.log", recipe), evaluated(folder, recipe)
    assert len(points["search"]) == len(points["random"]) == EVALUATIONS
    failed = [t for s in studies.values() for t in s.get_trials(deepcopy=False) if t.state.name != "COMPLETE"]
    assert {(t.user_attrs["key"], t.user_attrs["cause"]) for t in failed} == {(deadly, "worker")}
    assert executed(folder)[deadly] == 0 and max(executed(folder).values()) <= 1 + executed(folder, "begin")[deadly]


@pytest.mark.full
def test_a_killed_search_with_random_failures_and_a_deadly_subnetwork_ends_with_exact_counts(
    cluster: tuple[str, list[Node]], home: Path, tmp_path: Path
) -> None:
    recipe, folder = stand_in_recipe(EVALUATIONS), tmp_path / "run"
    deadly = stand_in_evaluator(recipe)[0].uniform_scalings()[-1].key
    faults = ("--deadly", deadly, "--failing", "0.1")
    process = driver(folder, cluster[0], home, *faults, seconds=0.1)
    wait_for(lambda: len(lines(folder, "end")) >= 15 and len(lines(folder, "raise")) >= 1, 300, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    recorded = evaluated(folder, recipe)
    assert 0 < len(recorded["search"]) < EVALUATIONS
    resumed = driver(folder, cluster[0], home, *faults, seconds=0.01)
    assert resumed.wait(540) == 0, resumed.communicate()[1]

    studies, points = open_studies(folder / "study.log", recipe), evaluated(folder, recipe)
    assert len(points["search"]) == len(points["random"]) == EVALUATIONS
    assert all(points[name][: len(before)] == before for name, before in recorded.items()), "something was lost"
    failed = [t for s in studies.values() for t in s.get_trials(deepcopy=False) if t.state.name != "COMPLETE"]
    causes = {(t.user_attrs["key"], t.user_attrs["cause"]) for t in failed}
    raised = executed(folder, "raise")
    assert {key for key, cause in causes if cause == "worker"} == {deadly}
    assert {key for key, cause in causes if cause != "worker"} <= set(raised)
    assert executed(folder)[deadly] == 0
    assert {key for each in points.values() for key, _ in each} <= set(executed(folder))
    twice = sum(count - 1 for count in executed(folder).values())
    assert twice <= 2, "only what was in flight at the kill may be evaluated again"


@pytest.mark.slow
def test_workers_a_node_and_the_driver_are_killed(cluster: tuple[str, list[Node]], home: Path, tmp_path: Path) -> None:
    address, nodes = cluster
    recipe, folder = stand_in_recipe(EVALUATIONS), tmp_path / "run"
    process = driver(folder, address, home)
    wait_for(lambda: len({line[2] for line in lines(folder, "begin")}) == 2, 240, process)  # both nodes are at work
    wait_for(lambda: len(lines(folder, "end")) >= 5, 120, process)
    os.kill(int(lines(folder, "begin")[-1][2]), signal.SIGKILL)
    wait_for(lambda: len(lines(folder, "end")) >= 10, 180, process)
    nodes.pop().kill()
    wait_for(lambda: len(lines(folder, "end")) >= 15, 180, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    recorded = {
        name: [(p.key, p.values) for p in evaluated_points(s)]
        for name, s in open_studies(folder / "study.log", recipe).items()
    }
    begun_before = executed(folder, "begin")
    assert 10 <= len(recorded["search"]) < EVALUATIONS

    resumed = driver(folder, address, home)
    assert resumed.wait(300) == 0, resumed.communicate()[1]

    studies, points = open_studies(folder / "study.log", recipe), evaluated(folder, recipe)
    assert len(points["search"]) == len(points["random"]) == EVALUATIONS
    for name, points_before in recorded.items():
        assert [point for point in points_before if point not in points[name]] == []
        for key, _ in points_before:
            assert executed(folder, "begin")[key] == begun_before[key], "a finished evaluation ran again"
    unfinished = [t for s in studies.values() for t in s.get_trials(deepcopy=False) if t.state.name != "COMPLETE"]
    assert unfinished == []
    in_flight = 2 + 2 + 2
    assert sum(executed(folder).values()) <= len(executed(folder)) + in_flight
    assert {key for keys in points.values() for key, _ in keys} == set(executed(folder))


@pytest.mark.slow
def test_a_real_search_on_one_worker_is_the_local_one(
    cluster: tuple[str, list[Node]], home: Path, finished: tuple[Path, Path]
) -> None:
    (address, _), (recipe, folder) = cluster, finished
    run = Run(folder)
    trials, measurements = run.trials.read_text(), run.measurements.read_bytes()
    for name in ("study.log", "trials.csv", "verified.jsonl", "front.json", "report.html", "exports"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    command = [sys.executable, "-m", "nas.cli", "search", str(recipe), "search.workers=1", "--ray", address]
    done = subprocess.run(
        [*command, "--run", str(folder)], env=environment(home), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert run.trials.read_text() == trials and run.measurements.read_bytes() == measurements


FAULTY_METRIC = """
import os, random, signal, sys

LOG, DEADLY, last = {log!r}, {deadly!r}, None

def right(labels, predictions):
    global last
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != "score_in_slices":
        frame = frame.f_back
    if frame is not None and frame is not last:  # an evaluation of the search, not one of its resamples
        last, key = frame, frame.f_back.f_locals["subnet"].key
        fails = random.SystemRandom().random() < 0.15
        with open(LOG, "a") as log:
            log.write(f"{{'raise' if fails else 'end' if key != DEADLY else 'die'}} {{key}} {{os.getpid()}}\\n")
        if key == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        if fails:
            raise ArithmeticError("it failed at random")
    return float((labels == predictions).mean())
"""


FEW_HANDOUTS = """
from nas import cli
from nas.ray import search_driver

search_driver.MAX_RETRIES, search_driver.MAX_HANDOUTS = 0, 2  # a worker takes seconds to start
cli.main()
"""


@pytest.mark.full
def test_a_real_search_is_killed_its_metric_raises_at_random_and_a_subnetwork_is_deadly(
    cluster: tuple[str, list[Node]], home: Path, finished: tuple[Path, Path]
) -> None:
    (address, _), (recipe, folder) = cluster, finished
    metric, deadly = folder.parent / "faulty.py", evaluated(folder, Run(folder).recipe)["search"][3][0]
    metric.write_text(FAULTY_METRIC.format(log=str(folder.parent / "evaluations.log"), deadly=deadly))
    for name in ("study.log", "trials.csv", "verified.jsonl", "front.json", "report.html", "exports", "finished"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "finished.json").unlink(missing_ok=True)
    changes = [f"task.metrics={{right: {metric}:right}}", "objectives={right: maximize, latency_ms: minimize}"]
    (folder / "recipe.yaml").write_text(Recipe.load(recipe, [*changes, "finish.models=0"]).to_yaml())
    run = Run(folder)
    command = [sys.executable, "-c", FEW_HANDOUTS, "search", str(folder / "recipe.yaml"), "--ray", address]

    def driven() -> subprocess.Popen[str]:
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, "--run", str(folder)], env=environment(home), **options)

    killed = driven()
    wait_for(lambda: len(lines(folder.parent, "end")) >= 12 and bool(lines(folder.parent, "raise")), 600, killed)
    killed.kill()
    killed.communicate()
    recorded = evaluated(folder, run.recipe)
    resumed = driven()
    errors = resumed.communicate(timeout=900)[1]
    assert resumed.returncode == 0, errors

    studies, points = open_studies(run.study, run.recipe), evaluated(folder, run.recipe)
    assert len(points["search"]) == len(points["random"]) == run.recipe.search.evaluations
    assert recorded["search"], "it was killed before anything was recorded"
    assert all(point in points[name] for name, before in recorded.items() for point in before), "something was lost"
    failed = [t for s in studies.values() for t in s.get_trials(deepcopy=False) if t.state.name != "COMPLETE"]
    causes = {(t.user_attrs["key"], t.user_attrs["cause"]) for t in failed}
    assert {key for key, cause in causes if cause == "worker"} == {deadly}
    assert {cause for _, cause in causes} <= {"worker", "metric"}
    done = executed(folder.parent)
    assert not done[deadly] and {key for each in points.values() for key, _ in each} <= done.keys()
    assert len({line[2] for line in lines(folder.parent, "die")}) > 1 and run.front().points


@pytest.mark.slow
def test_a_driver_without_the_token_gets_the_variables_to_set(
    cluster: tuple[str, list[Node]], text_recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "stranger").mkdir()
    code = f"from nas.ray.cluster import ray_connection\nwith ray_connection({cluster[0]!r}): pass"
    env = {k: v for k, v in environment(tmp_path / "stranger").items() if not k.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert "RAY_AUTH_MODE=token" in done.stderr and "RAY_AUTH_TOKEN" in done.stderr
    assert "InvalidAuthToken" not in done.stderr, "the C++ side must be silent"


# -- the driver without a cluster -----------------------------------------------------------------------------------


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from nas.ray.cluster import ray_connection

    with (
        pytest.raises(InputError, match=r"`127.0.0.1:\d+` does not answer .*ray start --head"),
        ray_connection(f"127.0.0.1:{free_port()}"),
    ):
        pass


def searcher(folder: Path, workers: int = 2):
    from nas.ray.search_driver import StudySearcher

    recipe = stand_in_recipe(40)
    scheduler = EvaluationScheduler(
        build_queues(open_studies(folder / "study.log", recipe), recipe, *stand_in_evaluator(recipe, 4))
    )
    scheduler.reporting().__enter__()
    return StudySearcher(scheduler, workers)


def result(searcher, batch, seconds: float) -> dict[str, object]:
    outcomes = [Outcome({"accuracy": (0.5 + 0.001 * i, 0.01)}, 100) for i in range(len(batch.evaluations))]
    return {"version_error": None, "outcomes": outcomes, "seconds": seconds * len(batch.evaluations)}


def test_short_evaluations_are_batched_unless_there_is_one_worker(tmp_path: Path) -> None:
    for workers, seconds, size in ((2, 0.01, 25), (2, 1.0, 1), (1, 0.01, 1)):
        (tmp_path / f"{workers}-{seconds}").mkdir()
        search = searcher(tmp_path / f"{workers}-{seconds}", workers)
        first = search.suggest("a")["batch"]
        assert len(first.evaluations) == 1
        search.on_trial_complete("a", result(search, first, seconds))
        assert len(search.suggest("b")["batch"].evaluations) == size


def test_a_worker_of_another_version_stops_the_search(tmp_path: Path) -> None:
    from nas.ray.search_worker import Worker, WorkerPayload, versions

    payload = WorkerPayload(load=LoadedEvaluator(StandIn(tmp_path / "log", 0.0)), folder=tmp_path)
    other = replace(payload, versions={**versions(), "torch": "0.1"})
    search = searcher(tmp_path)
    worker = object.__new__(Worker)
    worker.setup(search.suggest("a"), other)
    search.on_trial_complete("a", worker.step())
    assert search.suggest("b") == "FINISHED"
    assert isinstance(search.error, InputError) and f"torch {torch.__version__} against 0.1" in str(search.error)


def test_an_evaluation_whose_worker_is_lost_too_often_has_failed(tmp_path: Path) -> None:
    search, evaluations = searcher(tmp_path), []
    for trial in "abc":
        assert states(search.scheduler.queues[0].study)["FAIL"] == 0
        evaluations.append(search.suggest(trial)["batch"].evaluations[0])
        search.on_trial_complete(trial, None, error=True)
    assert evaluations[0] == evaluations[1] == evaluations[2] != search.suggest("d")["batch"].evaluations[0]
    assert states(search.scheduler.queues[0].study)["FAIL"] == 1


def test_an_evaluation_that_kills_its_worker_takes_no_other_of_its_batch_with_it(tmp_path: Path) -> None:
    search, poison, lost, sizes = searcher(tmp_path), None, Counter[str](), list[int]()
    for number in range(300):
        if not isinstance(suggestion := search.suggest(f"{number}"), dict):
            break
        batch = suggestion["batch"]
        keys = [subnet.key for subnet, _ in batch.evaluations]
        poison = poison or (keys[3] if len(keys) > 10 else None)
        if poison in keys:
            sizes.append(len(keys))
            lost.update(keys)
            search.on_trial_complete(f"{number}", None, error=True)
        else:
            search.on_trial_complete(f"{number}", result(search, batch, 0.01))
    assert search.error is None and suggestion == "FINISHED"
    assert sizes[0] > 10 and sizes[1:] == [1, 1] and {key for key, count in lost.items() if count > 1} == {poison}
    failed = [t for t in search.scheduler.queues[0].study.trials if t.state.name == "FAIL"]
    assert [(t.user_attrs["key"], t.user_attrs["cause"]) for t in failed] == [(poison, "worker")]


def test_weights_are_memory_mapped_and_copied_once_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nas.ray import search_worker as ray_worker

    supernet = Supernet(bert(num_labels=2))
    supernet.model.save_pretrained(tmp_path / "weights")
    scorer = ray_worker.Scorer(supernet, EvaluationSet(cast(Any, None), (), ()), ["accuracy"])
    payload = ray_worker.WorkerPayload.from_folder(tmp_path / "weights", scorer)
    loaded = payload.load(payload.local_folder())
    address = loaded.supernet.model.base_model.encoder.layer[0].intermediate.dense.weight.data_ptr()
    assert "model.safetensors" in mapping_of(address)
    inputs = text_inputs()
    assert torch.equal(loaded.supernet.model(**inputs).logits, supernet.model(**inputs).logits)

    monkeypatch.setattr(ray_worker.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(ray_worker.ray, "get", lambda value: value)
    files = ray_worker.FileServer(tmp_path / "weights")
    remote = type("Remote", (), {"read": type("Call", (), {"remote": staticmethod(files.read)})})
    remote_payload = replace(payload, folder=tmp_path / "not-mounted", file_server=remote)
    copy = remote_payload.local_folder()
    assert (copy / "model.safetensors").read_bytes() == (tmp_path / "weights" / "model.safetensors").read_bytes()
    monkeypatch.setattr(ray_worker.WorkerPayload, "_fetch", None)
    assert remote_payload.local_folder() == copy


def mapping_of(address: int) -> str:
    """The line of this process's memory map that holds an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= address < high:
            return line
    return ""

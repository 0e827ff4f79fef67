"""Trainings in several processes: torchrun and Ray Train give the same weights, and a lost worker changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from test_finetune import SMALL, export
from test_supernet_training import free_port

from nas.recipe.schema import Recipe
from nas.runs import processes
from nas.runs.run import Run
from nas.stages.parent import run_parent
from nas.stages.supernet import run_supernet
from nas.tasks.context import TaskContext
from search_spaces import InputError

ROOT = Path(__file__).parent.parent
HOOK = """
import os, signal, threading, time
from pathlib import Path

here = Path(__file__).parent

def examples(data):
    if os.environ.get("RANK") == "1" and (here / "lose-one").exists():
        threading.Thread(target=die, daemon=True).start()
    return data

def die():
    while not list(here.glob("*/supernet.partial/checkpoints/checkpoint-*/trainer_state.json")):
        time.sleep(0.01)
    (here / "lose-one").unlink()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def recipe(text_recipe: Path) -> Path:
    """The toy recipe with two processes for each training; its examples can cost one of them its life."""
    data = yaml.safe_load(text_recipe.read_text())
    (text_recipe.parent / "own.py").write_text(HOOK)
    data["parent"]["workers"] = data["supernet"]["workers"] = 2
    data["supernet"] |= {"augment": "own.py:examples", "epochs": 6}
    text_recipe.write_text(yaml.safe_dump(data))
    return text_recipe


TORCHRUN = ("torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", "--master-port", "-m", "--")
ACCELERATE = ("accelerate.commands.launch", "--cpu", "--num_processes=2", "--main_process_port", "-m")


def launched_by(launcher: tuple[str, ...], *words: object) -> str:
    """What `nas` prints as two processes."""
    at = next(i for i, option in enumerate(launcher) if option.endswith("port")) + 1
    launch = [*launcher[:at], str(free_port()), *launcher[at:]]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "nas.cli", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(folder: Path) -> list[dict[str, float]]:
    log = json.loads((folder / "training.json").read_text())
    steps = [entry for entry in log if "loss" in entry]  # the last entry is the time since it last resumed
    return [{name: value for name, value in entry.items() if "loss" in name or name == "step"} for entry in steps]


@pytest.mark.slow
def test_ray_train_equals_torchrun_and_survives_a_lost_worker(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    here = recipe.parent
    output = launched_by(TORCHRUN, "profile", recipe, "--run", here / "launched")
    assert output.count("supernet   trained: ") == 1 and "depth-only" in output
    launched = Run(here / "launched")
    assert not (launched.supernet / "checkpoints").exists() and any(launched.predictor.iterdir())

    launched_by(ACCELERATE, "finetune", export(launched, SMALL, here / "small"), recipe, "--run", launched.folder)
    assert load_file(here / "small-finetuned" / "model.safetensors").keys()

    loaded = Recipe.load(recipe)
    clustered, context = Run.open(here / "clustered", loaded), TaskContext(loaded)
    shutil.copytree(launched.parent, clustered.parent)
    (here / "lose-one").touch()
    for name, value in {"RAY_AUTH_MODE": "disabled", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    try:
        run_supernet(clustered, context, "auto")
    finally:
        ray.shutdown()
    assert not (here / "lose-one").exists(), "no worker was lost"
    later, expected = (losses(run.supernet)[1:] for run in (clustered, launched))  # the first mean spans the loss
    assert later == expected and later
    mine, theirs = (load_file(run.supernet / "model.safetensors") for run in (clustered, launched))
    assert all(value.equal(theirs[name]) for name, value in mine.items())
    assert not (clustered.folder / ".ray-train").exists()


def test_the_requested_processes_must_be_launched(recipe: Path) -> None:
    run, context = Run.open(recipe.parent / "run", Recipe.load(recipe)), TaskContext(Recipe.load(recipe))
    with pytest.raises(InputError, match=r"launched processes, 1, but got 2; add --ray, or launch"):
        run_parent(run, context)


def test_the_launcher_sets_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.world_size() == 1 and processes.is_main()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert processes.world_size() == 1  # some machines set it for jobs of their own
    monkeypatch.setenv("RANK", "2")
    assert processes.world_size() == 4 and not processes.is_main()
    monkeypatch.setenv("RANK", "0")
    assert processes.is_main()


def test_where_workers_run_may_change_and_how_many_may_not(recipe: Path) -> None:
    first = Recipe.load(recipe)
    assert not first.differences(Recipe.load(recipe, ["supernet.cpus_per_worker=4", "parent.gpus_per_worker=1"]))
    assert first.differences(Recipe.load(recipe, ["supernet.workers=4"])) == {
        "supernet.workers": "supernet.workers: 2, was 4"
    }

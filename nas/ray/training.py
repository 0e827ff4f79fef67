"""A training on a Ray cluster: Ray Train starts its processes, the run's folder keeps what they reach.

Each worker does what a process of torchrun would. All of them see the run's folder, where the checkpoints are: when
one is lost, Ray Train starts all anew, and they go on from the last checkpoint.
"""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from torch import distributed

from nas.ray.cluster import capacity, connected
from nas.ray.search_worker import of_other_versions, versions
from nas.recipe.schema import Training
from nas.runs import processes
from nas.runs.progress import ProgressCallback, print_line
from nas.runs.run import Run
from nas.tasks.context import TaskContext
from search_spaces import InputError

RETRIES = 3
"""How often the workers are started anew after one was lost."""
POLL_S = 0.5
TIMEOUT_S = 7 * 24 * 3600
"""How long a worker waits for the others in one step; a lost one is noticed at once, by its connection."""


def train_on_ray(
    address: str,
    train: Callable[[Run, TaskContext, ProgressCallback], None],
    name: str,
    run: Run,
    settings: Training,
    report: ProgressCallback,
) -> None:
    """Runs a training of a run on the workers of a Ray cluster.

    Args:
        address: ``auto``, ``local`` or ``host:port``.
        train: The training, a function of a module that the workers can import.
        name: Section of the recipe: ``parent`` or ``supernet``.
        run: Where the training finds what it needs and stores what it ends with; every worker must see its folder.
        settings: The section: how many workers, and what each takes.
        report: Told how far it is.

    Raises:
        InputError: If the cluster cannot be reached, a worker does not see the run or is of another version, or too
            many were lost.
    """
    assert settings.workers is not None
    resources = {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}
    with connected(address), _storage(run) as storage:
        if (fitting := capacity(resources)) < settings.workers:
            print_line(
                f"ray        {settings.workers} workers are asked for, {fitting} fit: waiting for nodes to join"
            )
        board = ray.remote(num_cpus=0)(Board).remote()
        trainer = TorchTrainer(
            work,
            train_loop_config={
                "train": train,
                "name": name,
                "folder": run.folder.resolve(),
                "recipe": run.recipe,
                "versions": versions(),
                "board": board,
            },
            torch_config=TorchConfig(timeout_s=TIMEOUT_S),
            scaling_config=ScalingConfig(
                num_workers=settings.workers,
                use_gpu=settings.gpus_per_worker > 0,
                resources_per_worker={kind: amount for kind, amount in resources.items() if amount},
            ),
            run_config=RunConfig(
                name=name, storage_path=str(storage), failure_config=FailureConfig(max_failures=RETRIES)
            ),
        )
        with _shown(board, report):
            error = _fit(trainer)
        refusal = ray.get(board.refusal.remote())
    if refusal is not None:
        raise InputError(refusal)
    if error is not None:
        raise InputError(f"the training of `{name}` failed on the Ray cluster ({error}); its checkpoints are kept.")


def _fit(trainer: TorchTrainer) -> str | None:
    """Runs it to its end; what went wrong, in one line."""
    try:
        trainer.fit()
    except TrainingFailedError as error:
        return " ".join(str(error).split())[-300:]
    return None


@contextmanager
def _storage(run: Run) -> Iterator[Path]:
    """Where Ray Train notes what it does; nothing of it is needed afterwards."""
    folder = run.folder.resolve() / ".ray-train"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _shown(board: Any, report: ProgressCallback) -> Iterator[None]:
    """Hands on what the workers put on the board, for the duration."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(POLL_S):
            report(*ray.get(board.progress.remote()))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Board:
    """An actor that workers write to and the driver reads: how far they are, and why they refuse."""

    def __init__(self) -> None:
        self._progress = (0, 0, "")
        self._refusal: str | None = None

    def show(self, done: int, total: int, note: str) -> None:
        """Steps done, steps in all, what to show."""
        self._progress = (done, total, note)

    def progress(self) -> tuple[int, int, str]:
        """What was shown last."""
        return self._progress

    def refuse(self, why: str) -> None:
        """Says that no worker need try again."""
        self._refusal = why

    def refusal(self) -> str | None:
        """Why, if one did."""
        return self._refusal


# -- on a worker ------------------------------------------------------------------------------------------------------


def work(config: dict[str, Any]) -> None:
    """One process of a training."""
    from nas.runs.progress import quiet_libraries

    board = config["board"]
    refusals = [why for why in _gathered(_refusal(config)) if why is not None]
    if refusals:
        ray.get(board.refuse.remote(refusals[0]))
        return
    quiet_libraries()
    processes.barrier()
    show = board.show.remote if processes.is_main() else lambda *_: None
    try:
        config["train"](Run(config["folder"]), TaskContext(config["recipe"]), show)
    except InputError as error:
        ray.get(board.refuse.remote(str(error)))
        raise


def _refusal(config: dict[str, Any]) -> str | None:
    """Why this worker cannot do its part; what another one said before counts too."""
    earlier: str | None = ray.get(config["board"].refusal.remote())
    if earlier is not None:
        return earlier
    if why := of_other_versions(config["versions"]):
        return f"every worker must have the driver's versions, but {why}; install them."
    if not (config["folder"] / "recipe.yaml").is_file():
        return (
            f"every worker must see the run, but {socket.gethostname()} has no `{config['folder']}`; keep it on "
            f"storage that all nodes share, or leave `{config['name']}.workers` out."
        )
    return None


def _gathered(mine: str | None) -> list[str | None]:
    """What each worker has to say."""
    found: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, mine)
    return found

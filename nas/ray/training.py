"""A training on a Ray cluster: Ray Train starts its processes, the checkpoints are in the folder of the run.

Each worker does what a process of torchrun does. All workers can read and write the folder of the run. If one is lost,
Ray Train starts all of them again, and they resume from the last checkpoint.
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

from nas.ray.cluster import max_workers, ray_connection
from nas.ray.search_worker import version_mismatch, versions
from nas.recipe.schema import Training
from nas.runs import processes
from nas.runs.progress import ProgressCallback, print_line
from nas.runs.run import Run
from nas.tasks.context import TaskContext
from search_spaces import InputError

MAX_RETRIES = 3
"""How often the workers are started again after one was lost."""
POLL_S = 0.5
TIMEOUT_S = 7 * 24 * 3600
"""How long a worker waits for the others in one step; the loss of a worker is noticed at once, by its connection."""


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
        run: Holds the inputs and the result of the training; every worker must be able to read and write its folder.
        settings: The section: number of workers, and the resources of each.
        report: Progress callback.

    Raises:
        InputError: If the cluster cannot be reached, a worker cannot read the run or has other versions, or too many
            workers were lost.
    """
    assert settings.workers is not None
    resources = {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}
    with ray_connection(address), _storage(run) as storage:
        if (room := max_workers(resources)) < settings.workers:
            print_line(
                f"ray        {settings.workers} workers requested, the cluster has room for {room}; waiting for nodes"
            )
        monitor = ray.remote(num_cpus=0)(TrainingMonitor).remote()
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "train": train,
                "name": name,
                "folder": run.folder.resolve(),
                "recipe": run.recipe,
                "versions": versions(),
                "monitor": monitor,
            },
            torch_config=TorchConfig(timeout_s=TIMEOUT_S),
            scaling_config=ScalingConfig(
                num_workers=settings.workers,
                use_gpu=settings.gpus_per_worker > 0,
                resources_per_worker={name: amount for name, amount in resources.items() if amount},
            ),
            run_config=RunConfig(
                name=name, storage_path=str(storage), failure_config=FailureConfig(max_failures=MAX_RETRIES)
            ),
        )
        with _forward_progress(monitor, report):
            error = _run(trainer)
        failure = ray.get(monitor.failure.remote())
    if failure is not None:
        raise InputError(failure)
    if error is not None:
        raise InputError(f"the training of `{name}` failed on the Ray cluster ({error}); its checkpoints are kept.")


def _run(trainer: TorchTrainer) -> str | None:
    """Runs the training; returns its error in one line, or None."""
    try:
        trainer.fit()
    except TrainingFailedError as error:
        return " ".join(str(error).split())[-300:]
    return None


@contextmanager
def _storage(run: Run) -> Iterator[Path]:
    """A folder for the state of Ray Train, removed after the block."""
    folder = run.folder.resolve() / ".ray-train"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _forward_progress(monitor: Any, report: ProgressCallback) -> Iterator[None]:
    """Passes the progress that workers report to the monitor on to a callback during a block."""
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(POLL_S):
            report(*ray.get(monitor.progress.remote()))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class TrainingMonitor:
    """An actor to which workers report progress and failures, and from which the driver reads them."""

    def __init__(self) -> None:
        self._progress = (0, 0, "")
        self._failure: str | None = None

    def report(self, done: int, total: int, note: str) -> None:
        """Stores the progress: steps done, steps in all, a note."""
        self._progress = (done, total, note)

    def progress(self) -> tuple[int, int, str]:
        """The last progress reported."""
        return self._progress

    def fail(self, reason: str) -> None:
        """Stores why the training cannot succeed; no worker tries again."""
        self._failure = reason

    def failure(self) -> str | None:
        """Why the training cannot succeed; None if nothing was reported."""
        return self._failure


# -- on a worker ------------------------------------------------------------------------------------------------------


def train_worker(config: dict[str, Any]) -> None:
    """Runs one process of a training on a worker."""
    from nas.runs.progress import quiet_libraries

    monitor = config["monitor"]
    failures = [failure for failure in _all_gather(_startup_failure(config)) if failure is not None]
    if failures:
        ray.get(monitor.fail.remote(failures[0]))
        return
    quiet_libraries()
    processes.barrier()
    report = monitor.report.remote if processes.is_main() else lambda *_: None
    try:
        config["train"](Run(config["folder"]), TaskContext(config["recipe"]), report)
    except InputError as error:
        ray.get(monitor.fail.remote(str(error)))
        raise


def _startup_failure(config: dict[str, Any]) -> str | None:
    """Why this worker cannot train, or a failure that another one has reported; None if there is none."""
    reported: str | None = ray.get(config["monitor"].failure.remote())
    if reported is not None:
        return reported
    if mismatch := version_mismatch(config["versions"]):
        return f"every worker must have the driver's versions, but {mismatch}; install them."
    if not (config["folder"] / "recipe.yaml").is_file():
        return (
            f"every worker must have access to the run, but {socket.gethostname()} has no `{config['folder']}`; keep "
            f"it on storage that all nodes share, or remove `{config['name']}.workers`."
        )
    return None


def _all_gather(value: str | None) -> list[str | None]:
    """The values of all workers."""
    values: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values

"""The worker's side of a search on Ray: a Tune trainable that keeps its supernet between evaluations."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from filelock import FileLock
from ray import tune

from nas.runs.files import digest
from nas.studies.racing import Evaluate, Outcome, Race, Scorer, attempt
from nas.supernets import low_rank

if TYPE_CHECKING:
    from nas.tasks.evaluation import EvaluationSet
    from search_spaces import SubnetConfig

CHUNK = 64 * 2**20
SAME = ("paretoformer", "torch", "transformers", "optuna", "ray")
"""Packages of which a worker must have the driver's versions, or its figures would mean something else."""


def versions() -> dict[str, str]:
    """Versions of this process that a search's figures depend on."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in SAME:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def of_other_versions(drivers: dict[str, str]) -> str | None:
    """In what this worker differs from the driver; None where it does not."""
    mine = versions()
    different = [f"{n} {mine.get(n)} against {version}" for n, version in drivers.items() if mine.get(n) != version]
    return f"a worker on {socket.gethostname()} has {', '.join(different)}" if different else None


@dataclass(frozen=True)
class Package:
    """What a worker needs to evaluate subnetworks.

    Attributes:
        load: Makes the evaluating function from a folder of weights.
        folder: Where the driver has the weights; a node that does not see this folder fetches a copy.
        digests: File in the folder -> what identifies its content.
        files: A Ray actor on the driver's machine that reads the folder; set by `served`.
        versions: Those of the driver.
    """

    load: Callable[[Path], Evaluate]
    folder: Path
    digests: dict[str, str] = field(default_factory=dict)
    files: Any = None
    versions: dict[str, str] = field(default_factory=versions)

    @classmethod
    def of(cls, folder: Path, scorer: Scorer) -> Package:
        """The weights in a folder, and the scorer's examples and qualities."""
        folder = folder.resolve()
        load = partial(load_scorer, type(scorer.supernet.model), scorer.examples, list(scorer.names))
        files = [folder / name for name in ("config.json", "model.safetensors", low_rank.STATISTICS_FILE)]
        return cls(load, folder, {file.name: digest(file) for file in files if file.exists()})

    def served(self) -> Package:
        """The same with its files offered to nodes that do not see the folder."""
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        server = ray.remote(num_cpus=0)(Files).options(scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)
        return replace(self, files=server.remote(self.folder))

    def local_folder(self) -> Path:
        """The weights on this node: the driver's own folder if it is seen here, else a copy made once per node."""
        if _holds(self.folder, self.digests):
            return self.folder
        copy = Path(tempfile.gettempdir()) / f"paretoformer-{os.getuid()}" / "-".join(self.digests.values())
        copy.parent.mkdir(mode=0o700, exist_ok=True)
        with FileLock(f"{copy}.lock"):
            if not _holds(copy, self.digests):
                shutil.rmtree(copy, ignore_errors=True)
                copy.mkdir()
                for name in self.digests:
                    self._fetch(name, copy / name)
        return copy

    def _fetch(self, name: str, target: Path) -> None:
        with open(target, "wb") as out:
            while data := ray.get(self.files.read.remote(name, out.tell())):
                out.write(data)


def _holds(folder: Path, digests: dict[str, str]) -> bool:
    return all((folder / name).is_file() and digest(folder / name) == known for name, known in digests.items())


class Files:
    """Reads the files of one folder for other nodes, piece by piece."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str, start: int) -> bytes:
        """The next piece of a file; empty at its end."""
        with open(self.folder / name, "rb") as file:
            file.seek(start)
            return file.read(CHUNK)


def load_scorer(model_class: type, examples: EvaluationSet, names: Sequence[str], folder: Path) -> Scorer:
    """A scorer whose weights are mapped from the folder's file: in memory once per node, however many workers."""
    import torch

    from nas.runs.progress import quiet_libraries
    from nas.supernets.supernet import Supernet
    from nas.supernets.training import training_device

    quiet_libraries()
    model = model_class.from_pretrained(folder, dtype=torch.float32)  # type: ignore[attr-defined]
    supernet = Supernet(model.to(training_device()).eval(), low_rank.CalibrationStatistics.load(folder))
    return Scorer(supernet, examples, names)


@dataclass(frozen=True)
class Task:
    """Evaluations that travel to a worker together."""

    jobs: tuple[tuple[SubnetConfig, Race | None], ...]

    def __repr__(self) -> str:
        return f"{len(self.jobs)} evaluations"


class Worker(tune.Trainable):
    """One reused actor: it loads the package once and evaluates one task after the other."""

    def setup(self, config: dict[str, Any], package: Package) -> None:
        """Loads what evaluates, unless this worker is of another version."""
        self._task: Task = config["task"]
        self._refusal = of_other_versions(package.versions)
        if self._refusal is None:
            self._evaluate = package.load(package.local_folder())

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next task."""
        self._task = new_config["task"]
        return True

    def step(self) -> dict[str, Any]:
        """Evaluates the whole task."""
        if self._refusal is not None:
            return {"done": True, "refusal": self._refusal, "outcomes": [], "seconds": 0.0}
        start = time.perf_counter()
        outcomes: list[Outcome] = [attempt(self._evaluate, subnet, race) for subnet, race in self._task.jobs]
        return {"done": True, "refusal": None, "outcomes": outcomes, "seconds": time.perf_counter() - start}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: an evaluation that is cut short starts anew."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""

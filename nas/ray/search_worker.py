"""A worker of a search on Ray: a Tune trainable that keeps its supernet between evaluations."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from filelock import FileLock
from ray import tune
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from nas.runs.files import digest
from nas.studies.racing import EarlyStopping, Evaluate, Outcome, Scorer, evaluate_safely
from nas.supernets import low_rank
from nas.tasks.vocabulary import VOCABULARY_FILE

if TYPE_CHECKING:
    import torch

    from nas.tasks.evaluation import EvaluationSet
    from search_spaces import SubnetConfig

CHUNK_BYTES = 64 * 2**20
PINNED_PACKAGES = ("paretoformer", "torch", "transformers", "optuna", "ray")
"""Packages of which a worker must have the driver's versions, as they change the values it computes."""


def versions() -> dict[str, str]:
    """Versions in this process that the values of a search depend on."""
    installed = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PINNED_PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def version_mismatch(driver: dict[str, str]) -> str | None:
    """The versions in which this worker differs from the driver; None if there are none."""
    worker = versions()
    different = [f"{name} {worker.get(name)} against {v}" for name, v in driver.items() if worker.get(name) != v]
    return f"a worker on {socket.gethostname()} has {', '.join(different)}" if different else None


@dataclass(frozen=True)
class WorkerPayload:
    """What a worker needs to evaluate subnetworks.

    Attributes:
        load: Folder of weights -> a function that evaluates.
        folder: Folder of the weights on the driver's machine; a node that cannot read it fetches a copy.
        digests: File in the folder -> hash of its content.
        file_server: A Ray actor on the driver's machine that reads the folder; set by `with_file_server`.
        versions: Those of the driver.
    """

    load: Callable[[Path], Evaluate]
    folder: Path
    digests: dict[str, str] = field(default_factory=dict)
    file_server: Any = None
    versions: dict[str, str] = field(default_factory=versions)

    @classmethod
    def from_folder(cls, folder: Path, scorer: Scorer) -> WorkerPayload:
        """A payload with the weights in a folder, and the examples and metrics of a scorer."""
        folder = folder.resolve()
        model_class, names = type(scorer.supernet.model), list(scorer.names)
        dtype, source = scorer.supernet.model.dtype, _by_reference(model_class)
        load = partial(load_scorer, source, dtype, scorer.examples, scorer.in_other_sizes, names)
        needed = ("config.json", "model.safetensors", low_rank.STATISTICS_FILE, VOCABULARY_FILE)
        files = [*(folder / name for name in needed), *folder.glob("*.py")]
        return cls(load, folder, {file.name: digest(file) for file in files if file.exists()})

    def with_file_server(self) -> WorkerPayload:
        """The same payload with a server of its files, for nodes that cannot read the folder."""
        this_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        server = ray.remote(num_cpus=0)(FileServer).options(
            scheduling_strategy=this_node, max_restarts=-1, max_task_retries=-1
        )
        return replace(self, file_server=server.remote(self.folder))

    def local_folder(self) -> Path:
        """The weights on this node: the driver's folder if it can be read here, else a copy, fetched once a node."""
        if _has_files(self.folder, self.digests):
            return self.folder
        copy = Path(tempfile.gettempdir()) / f"paretoformer-{os.getuid()}" / "-".join(self.digests.values())
        copy.parent.mkdir(mode=0o700, exist_ok=True)
        with FileLock(f"{copy}.lock"):
            if not _has_files(copy, self.digests):
                shutil.rmtree(copy, ignore_errors=True)
                copy.mkdir()
                for name in self.digests:
                    self._fetch(name, copy / name)
        return copy

    def _fetch(self, name: str, target: Path) -> None:
        with open(target, "wb") as out:
            while data := ray.get(self.file_server.read.remote(name, out.tell())):
                out.write(data)


def _has_files(folder: Path, digests: dict[str, str]) -> bool:
    return all((folder / name).is_file() and digest(folder / name) == value for name, value in digests.items())


class FileServer:
    """An actor that reads the files of one folder for other nodes, chunk by chunk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str, start: int) -> bytes:
        """The next chunk of a file; empty at its end."""
        with open(self.folder / name, "rb") as file:
            file.seek(start)
            return file.read(CHUNK_BYTES)


def _by_reference(model_class: type) -> type | str:
    """A class, or the name of its auto class if it is code of a model, which a worker loads from the folder."""
    package = model_class.__module__.partition(".")[0]
    if package != TRANSFORMERS_DYNAMIC_MODULE_NAME:
        return model_class
    ray.cloudpickle.register_pickle_by_value(sys.modules[package])  # configs that examples hold
    return str(model_class._auto_class)  # type: ignore[attr-defined]


def load_scorer(
    model_class: type | str,
    dtype: torch.dtype,
    examples: EvaluationSet,
    in_other_sizes: Mapping[str, EvaluationSet],
    names: Sequence[str],
    folder: Path,
) -> Scorer:
    """A scorer whose weights are memory-mapped from the folder: in memory once a node, for any number of workers."""
    import transformers

    from nas.modeling.own_code import register_own_code
    from nas.runs.progress import quiet_libraries
    from nas.supernets.device import training_device
    from nas.supernets.supernet import Supernet
    from nas.tasks.vocabulary import Vocabulary

    quiet_libraries()
    loader: Any = model_class
    if isinstance(model_class, str):
        register_own_code(str(folder), trust=True)  # the driver runs it too
        loader = getattr(transformers, model_class)
    model = loader.from_pretrained(folder, dtype=dtype)
    calibration, vocabulary = low_rank.CalibrationStatistics.load(folder), Vocabulary.load(folder)
    supernet = Supernet(model.eval(), calibration, vocabulary).to(training_device())
    return Scorer(supernet, examples, names, in_other_sizes)


@dataclass(frozen=True)
class EvaluationBatch:
    """Evaluations that a worker makes in one task.

    Attributes:
        evaluations: Each subnetwork, and when to stop its evaluation.
    """

    evaluations: tuple[tuple[SubnetConfig, EarlyStopping | None], ...]

    def __repr__(self) -> str:
        return f"{len(self.evaluations)} evaluations"


class Worker(tune.Trainable):
    """A reused actor: it loads the payload once and evaluates one batch after the other."""

    def setup(self, config: dict[str, Any], payload: WorkerPayload) -> None:
        """Loads the weights, unless this worker has other versions."""
        self._batch: EvaluationBatch = config["batch"]
        self._version_error = version_mismatch(payload.versions)
        if self._version_error is None:
            self._evaluate = payload.load(payload.local_folder())

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Sets the next batch."""
        self._batch = new_config["batch"]
        return True

    def step(self) -> dict[str, Any]:
        """Evaluates the batch."""
        if self._version_error is not None:
            return {"done": True, "version_error": self._version_error, "outcomes": [], "seconds": 0.0}
        start = time.perf_counter()
        outcomes: list[Outcome] = [
            evaluate_safely(self._evaluate, subnet, early_stopping)
            for subnet, early_stopping in self._batch.evaluations
        ]
        return {"done": True, "version_error": None, "outcomes": outcomes, "seconds": time.perf_counter() - start}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: an interrupted evaluation starts again."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""

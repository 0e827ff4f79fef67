"""Run: the folder of one recipe's results; running the same command again resumes from it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from nas.fronts.front import ParetoFront
from nas.fronts.point import Point, require_numbers
from nas.recipe.schema import Recipe
from nas.runs.files import check_place, delete, partial_path, read_json, write_json, write_text
from nas.runs.progress import print_line
from nas.runs.target import Target
from predictors import Workload, device_name
from search_spaces import InputError

VOLUMES = ("search", "sampler", "uniform", "random")
"""What front.json has hypervolumes of."""
EARLIER_FRONT = "front-{}.json"
"""The front of a run before it went on with another recipe, numbered from 1."""
IDENTITY = ("recipe.yaml", "environment.json")
"""Files that make a folder a run."""
PACKAGES = ("torch", "transformers", "optuna", "datasets", "scikit-learn", "accelerate", "numpy")


class Run:
    """Paths and results of one run.

    Args:
        folder: An existing run.

    Raises:
        InputError: If there is no run in the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if missing := [name for name in IDENTITY if not (self.folder / name).is_file()]:
            raise InputError(
                f"a run must be a folder with a recipe.yaml and an environment.json, but there is no {missing[0]} in "
                f"`{self.folder}`; `nas search recipe.yaml` creates a run."
            )
        self.recipe = self._load_recipe()
        read_json(self.folder / "environment.json")  # a damaged one is said at once
        self.parent = self.folder / "parent"
        self.teacher_outputs = self.folder / "teacher_outputs"
        self.supernet = self.folder / "supernet"
        self.measurements = self.folder / "measurements.jsonl"
        self.footprints = self.folder / "footprints.jsonl"
        self.predictor = self.folder / "predictor"
        self.study = self.folder / "study.log"
        self.trials = self.folder / "trials.csv"
        self.near_ties = self.folder / "near_ties.jsonl"
        self.verified = self.folder / "verified.jsonl"
        self.front_file = self.folder / "front.json"
        self.parent_values = self.folder / "parent.json"
        self.report = self.folder / "report.html"
        self.exports = self.folder / "exports"
        self.finished = self.folder / "finished"
        self.finished_list = self.finished / "finished.json"
        self.finished_before = self.finished / "finished-before.json"
        self.finetuned = self.folder / "finetuned.json"
        self.sensitivity = self.folder / "sensitivity.csv"
        self.logs = self.folder / "logs"
        self.trained_folders = (self.parent, self.supernet)
        searched = (
            self.study,
            self.trials,
            self.near_ties,
            self.finished,
            self.verified,
            self.front_file,
            self.report,
            self.exports,
        )
        self.depends_on_weights = (
            self.parent,
            self.teacher_outputs,
            self.supernet,
            *searched,
            self.finetuned,
            self.parent_values,
        )
        self._files = (self.parent_values, self.trials, self.front_file, self.report, self.finetuned, self.sensitivity)

    def _load_recipe(self) -> Recipe:
        try:
            return Recipe.load(self.folder / "recipe.yaml")
        except InputError as error:
            raise InputError(f"the recipe of the run `{self.folder}` cannot be used: {error}") from None

    @classmethod
    def open(cls, folder: str | Path, recipe: Recipe, *, remote: Collection[str] = ()) -> Run:
        """Creates the folder of a run, or opens an existing one.

        Args:
            folder: The run.
            recipe: Its recipe.
            remote: Names of the workloads of a new run that another device measures (see `nas.commands.remote`).

        Raises:
            InputError: If the folder holds a run of another recipe, or files that are no run; none is touched. A run
                goes on with other `EXTENDABLE_KEYS` of `nas.recipe.schema`.
        """
        folder = Path(folder)
        if is_run(folder):
            run = cls(folder)
            changed = recipe.differences(run.recipe)
            if others := [text for key, text in changed.items() if not recipe.is_extendable(key)]:
                raise InputError(
                    f"`{folder}` is a run of another recipe ({'; '.join(others[:3])}); "
                    "choose another folder with --run, or use the recipe it was started with."
                )
            if recipe.moved_keys(run.recipe):
                write_text(folder / "recipe.yaml", recipe.to_yaml())
            if changed:
                run._go_on(recipe, changed)
            return cls(folder)
        check_new(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            write_json(folder / "environment.json", environment(recipe.named_workloads, remote))
            write_text(folder / "recipe.yaml", recipe.to_yaml())
        except BaseException:
            (folder / "environment.json").unlink(missing_ok=True)
            raise
        return cls(folder)

    def _go_on(self, recipe: Recipe, changed: Mapping[str, str]) -> None:
        """Takes another recipe; the front so far is kept beside the one that will be made.

        With another training of the supernet, what depends on its weights moves into a folder of its own.

        Raises:
            InputError: If the trials of another supernet are in a database.
        """
        is_retrained = any(key.startswith("supernet.") for key in changed)
        if is_retrained and recipe.search.storage is not None:
            raise InputError(
                f"`{next(iter(changed))}` must stay as it is where `search.storage` holds the trials of the supernet, "
                f"but got {next(iter(changed.values()))}; choose another folder with --run."
            )
        with self.locked():
            kept = "what it trained, measured and scored stays"
            if self.front_file.exists():
                front = self._unused(EARLIER_FRONT)
                os.replace(self.front_file, front)
                kept += f"; the earlier front is {front.name}"
            if is_retrained:
                kept = kept.replace("it trained, measured and scored stays", "it measured and its parent stay")
                kept += f"; the earlier supernet is in {self._set_aside().name}"
            if self.finished_list.exists():
                os.replace(self.finished_list, self.finished_before)
            delete(self.report)
            write_text(self.folder / "recipe.yaml", recipe.to_yaml())
        print_line(f"run        goes on with {'; '.join(changed.values())}: {kept}")

    def _set_aside(self) -> Path:
        """Moves what depends on the weights of the supernet into a new folder, which is returned."""
        aside = self._unused("earlier-{}")
        aside.mkdir()
        for path in self.depends_on_weights[self.depends_on_weights.index(self.supernet) :]:
            delete(partial_path(path))
            if path.exists():
                os.replace(path, aside / path.name)
        return aside

    def _unused(self, name: str) -> Path:
        """The first path in the run of a name with a number, from 1, that does not exist."""
        paths = (self.folder / name.format(number) for number in count(1))
        return next(path for path in paths if not path.exists())

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the run for this process and removes what a killed one left unfinished.

        Raises:
            InputError: If another process has locked it.
        """
        from filelock import FileLock, Timeout

        try:
            with FileLock(self.folder / ".lock", timeout=0):
                self._remove_leftovers()
                yield
        except Timeout:
            raise InputError(f"another process is working on `{self.folder}`; wait for it or stop it.") from None

    def _remove_leftovers(self) -> None:
        for folder in self.folder.glob(".verify-*"):
            shutil.rmtree(folder, ignore_errors=True)
        for name in (*IDENTITY, *(path.name for path in self._files), "driver"):
            for file in self.folder.glob(f".{name}.*.tmp"):
                file.unlink(missing_ok=True)
        for stage in self.trained_folders:
            delete(stage / "checkpoints")

    @contextmanager
    def building(self, target: Path) -> Iterator[Path]:
        """A work folder, moved to ``target`` when the block ends without an error; a killed stage resumes in it.

        Results of previous weights of ``target`` are deleted first, checkpoints last: a kill loses no training.
        """
        work = partial_path(target)
        work.mkdir(parents=True, exist_ok=True)
        yield work
        self._remove_dependents(target)
        os.replace(work, target)
        delete(target / "checkpoints")

    def _remove_dependents(self, target: Path) -> None:
        """Deletes results that depend on a stage's weights. Latencies do not: measurements and the predictor stay.

        Of the exports, only folders that are exports go.
        """
        results = self.depends_on_weights
        for path in results[results.index(target) + 1 :] if target in results else ():
            for result in [file.parent for file in path.glob("*/subnet.json")] if path == self.exports else [path]:
                delete(result)
                delete(partial_path(result))
        if self.exports.is_dir() and not any(self.exports.iterdir()):
            self.exports.rmdir()

    @property
    def layer_order(self) -> list[int]:
        """The parent's layers, most important first."""
        file = self.supernet / "importance.json"
        return list(read_json(file, self.supernet, lambda data: [int(layer) for layer in data["layers"]]))

    @property
    def targets(self) -> list[Target]:
        """Its workloads, each on the device where it is measured, in the order of the recipe."""
        return [Target(self, name, workload) for name, workload in self.recipe.named_workloads.items()]

    @property
    def target(self) -> Target:
        """The first of its workloads, for what needs one."""
        return self.targets[0]

    @property
    def threads(self) -> int | None:
        """CPU threads of its trainings and evaluations; None before its first command."""
        number = self.environment.get("threads")
        return None if number is None else int(number)

    @threads.setter
    def threads(self, number: int) -> None:
        self.update_environment({"threads": number})

    @property
    def environment(self) -> dict[str, Any]:
        """What its results depend on besides the recipe: devices, versions."""
        return dict(read_json(self.folder / "environment.json"))

    def update_environment(self, changes: Mapping[str, Any]) -> None:
        """Stores other values of what its results depend on."""
        write_json(self.folder / "environment.json", {**self.environment, **changes})

    def results(self) -> dict[str, Any]:
        """The verified results, as stored in front.json.

        Raises:
            InputError: If the run has no front yet.
        """
        if not self.front_file.is_file():
            raise InputError(f"`{self.folder}` has no front yet; run `nas search` with its recipe to the end.")
        return dict(read_json(self.front_file, parse=_checked_results))

    @property
    def n_unverified(self) -> int:
        """Subnetworks of the fronts that the time to verify them did not suffice for; none before it has begun."""
        return int(self.results().get("left", 0)) if self.front_file.exists() else 0

    def front(self) -> ParetoFront:
        """The verified front."""
        return ParetoFront.from_dict(self.results()["front"])

    def earlier_front(self) -> tuple[Point, ...]:
        """The verified front from before the run last went on with another recipe; empty if it never did."""
        numbered = (self.folder / EARLIER_FRONT.format(number) for number in count(1))
        kept = list(takewhile(Path.is_file, numbered))
        return ParetoFront.from_dict(read_json(kept[-1], parse=_checked_results)["front"]).points if kept else ()

    def verified_points(self) -> list[Point]:
        """Every subnetwork that was exported, measured and scored on the held-out split, with baselines and parent."""
        return [Point.from_dict(point) for point in self.results()["verified"]]


def _checked_results(data: Any) -> dict[str, Any]:
    """The content of front.json; raises what is in `DAMAGE` unless every part of it can be read."""
    ParetoFront.from_dict(data["front"])
    if "parent" not in [Point.from_dict(point).source for point in data["verified"]]:
        raise ValueError("the parent must be verified, but is not")
    for name in ("reference", "hypervolume"):
        require_numbers(name, data[name])
    if data["hypervolume"] and (missing := set(VOLUMES) - data["hypervolume"].keys()):
        raise ValueError(f"`hypervolume` must have {', '.join(VOLUMES)}, but lacks {', '.join(sorted(missing))}")
    return dict(data)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return all((folder / name).is_file() for name in IDENTITY)


def check_new(folder: Path) -> None:
    """Raises InputError unless a new run may be created in a folder: it is empty, or does not exist."""
    check_place(folder, "--run")
    if folder.is_dir() and (other := next((path.name for path in folder.iterdir() if not _is_ours(path)), None)):
        raise InputError(
            f"`--run` must be a run, or a new or empty folder, but `{folder}` is none and holds `{other}`; choose "
            "another folder, nothing was changed."
        )


def _is_ours(path: Path) -> bool:
    """Whether a file is what a process that was killed while it created a run has left."""
    if path.name == "environment.json" and path.is_file():
        return '"packages"' in path.read_text(encoding="utf-8", errors="replace")
    return any(path.match(f".{name}.*.tmp") for name in IDENTITY)


def environment(workloads: Mapping[str, Workload], remote: Collection[str] = ()) -> dict[str, Any]:
    """What a run's results depend on besides its recipe; several workloads have a device each.

    Args:
        workloads: The workloads by name; an only one has an empty name.
        remote: Names of those that another device measures.
    """
    devices = {name: None if name in remote else device_name(workload) for name, workload in workloads.items()}
    elsewhere = {name: name in remote for name in workloads}
    return {
        "device": devices.get("", devices),
        "elsewhere": elsewhere.get("", elsewhere),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "packages": {name: version(name) for name in PACKAGES},
    }

"""Plan: which models of a folder to measure on another device, where this project is not installed.

The modules that this file imports are copied into the folder, so that the same code measures on both devices.
"""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from predictors.measurement.budget import Budget
from predictors.measurement.energy import energy_mj
from predictors.measurement.first_run import FirstRun
from predictors.measurement.groups import Visit, shuffled
from predictors.measurement.json_lines import JsonLines
from predictors.measurement.memory import peak_memory_mb
from predictors.measurement.prepare import prepare
from predictors.measurement.rounds import benchmark_mode, synchronizer
from predictors.measurement.runtime import Call
from predictors.measurement.runtimes import RUNTIMES
from predictors.measurement.timing import MOST, REFERENCE, Timing, median_reference, noise_warning
from predictors.measurement.workload import Workload, device_errors_as_input_errors, device_name
from search_spaces.errors import DAMAGE, InputError, described, short_error

PLAN, RESULTS = "plan.json", "results.jsonl"
MAX_PASSES, LONGEST_NAME = 1000, 200
GROUP_SIZE = 8
"""Models in memory at once."""
KEYS = {"reference": "anchor", "reference_ms": "anchor_ms"}
"""Attributes of `Plan` with another key in plan.json."""


@dataclass(frozen=True)
class Plan:
    """The models to measure. A model is a path relative to the plan's folder, or a hub id.

    Attributes:
        workload: The workload to measure.
        auto_class: Name of the transformers class that loads model folders.
        models: Name -> model folder, or ONNX file.
        inputs: Name -> file with the arrays that are the model's inputs.
        reference: The model that all others are compared with.
        passes: How often each model is loaded and measured, each time in a group with other models.
        precision: Wanted half-width of the confidence interval of a latency, relative.
        reference_ms: Latency of the reference model in milliseconds, if it was measured on the device before.
        remote_code: Whether the modelling files in the folders may run.
        untrained: Models whose folders have no weights; random weights give the same latency.
        minutes: Time limit of a visit to the device; None: proposed from the speed of the models.
        workload_name: Name of the workload in the run; empty for its only one.
    """

    workload: Workload
    auto_class: str
    models: Mapping[str, str]
    inputs: Mapping[str, str]
    reference: str
    passes: int
    precision: float
    reference_ms: float | None = None
    remote_code: bool = False
    untrained: Sequence[str] = ()
    minutes: float | None = None
    workload_name: str = ""

    def source(self, folder: Path, name: str) -> str:
        """The path or hub id of a model."""
        path = folder / self.models[name]
        return str(path) if path.exists() else self.models[name]

    def write(self, folder: Path) -> None:
        """Writes plan.json."""
        data = {KEYS.get(name, name): value for name, value in asdict(self).items()}
        (folder / PLAN).write_text(json.dumps(data, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Reads plan.json.

        Raises:
            InputError: If it is missing or damaged.
        """
        try:
            names = {key: name for name, key in KEYS.items()}
            stored: dict[str, Any] = dict(json.loads((folder / PLAN).read_bytes()))
            data = {names.get(key, key): value for key, value in stored.items()}
            plan = cls(**{**data, "workload": Workload.from_dict(data["workload"])})
            plan._check()
            return plan
        except (OSError, *DAMAGE) as error:
            raise InputError(
                f"`{folder}` must contain a complete {PLAN}, but it does not ({described(error)}); write it again "
                "with `nas profile --export`."
            ) from None

    def _check(self) -> None:
        """Raises ValueError for a value that `write` cannot have written."""
        for name in ("models", "inputs"):
            paths = getattr(self, name)
            if not (isinstance(paths, dict) and all(isinstance(path, str) for path in paths.values())):
                raise ValueError(f"`{name}` must be paths by name")
        if self.reference not in self.models or self.models.keys() != self.inputs.keys():
            raise ValueError("every model, and the reference, must have a path and inputs")
        if not isinstance(self.workload_name, str):
            raise ValueError(f"`workload_name` must be a text, but got {self.workload_name!r}")
        if type(self.passes) is not int or not 1 <= self.passes <= MAX_PASSES:
            raise ValueError(f"`passes` must be a whole number from 1 to {MAX_PASSES}, but got {self.passes!r}")
        for name in ("precision", "minutes", "reference_ms"):
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, float) and 0 < value <= MOST):
                raise ValueError(f"`{name}` must be a number above 0, but got {str(value)[:40]!r}")


@dataclass(frozen=True)
class Result:
    """One line of results.jsonl: the timing of one model in one pass, with its workload and device."""

    name: str
    number: int
    device_name: str
    workload: Workload
    timing: Timing

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Result:
        """Reads what `to_dict` returns.

        Raises:
            ValueError: If `measure_plan` cannot have written a value.
            KeyError, TypeError: If a value is missing.
        """
        workload, timing = Workload.from_dict(row["workload"]), Timing.from_dict(row["timing"])
        name, number, device = row["name"], row["number"], row["device_name"]
        if not (isinstance(name, str) and isinstance(device, str)):
            raise ValueError(f"`name` and `device_name` must be strings, but got {name!r} and {device!r}")
        if not (device.isprintable() and 0 < len(device) <= LONGEST_NAME):
            raise ValueError(f"`device_name` must be printable and at most {LONGEST_NAME} characters")
        if type(number) is not int or number < 0:
            raise ValueError(f"`number` must be a whole number from 0, but got {number!r}")
        return cls(name, number, device, workload, timing)


def results_file(folder: Path) -> JsonLines[Result]:
    """The results of a plan, one JSON line each; a last line that was cut short by a kill is ignored."""
    fix = "delete that line and type `python measure.py` on the device to measure it again"
    return JsonLines(folder / RESULTS, Result.from_dict, row="a measurement", fix=fix)


def measure_plan(folder: Path) -> None:
    """Measures what is missing in results.jsonl; the results of each group are on disk before the next starts."""
    plan = Plan.read(folder)
    check_device(plan.workload)
    file, device = results_file(folder), device_name(plan.workload)
    done = {(result.name, result.number): result.timing for result in file.read()}
    references = [timing for (name, _), timing in done.items() if name == REFERENCE]
    if plan.reference_ms is None and not references:
        done = {}  # their scale is lost
    for number in range(plan.passes):
        missing = [name for name in plan.models if name != plan.reference and (name, number) not in done]
        minutes = None if plan.minutes is None else plan.minutes / plan.passes

        def add(timings: Mapping[str, Timing], number: int = number) -> None:
            new = {(name, number): timing for name, timing in timings.items() if name != REFERENCE}
            if plan.reference_ms is None:
                new = {(REFERENCE, len(references)): timings[REFERENCE].raw} | new
                references.append(timings[REFERENCE].raw)
            file.append([Result(*key, device, plan.workload, timing).to_dict() for key, timing in new.items()])

        def reference_ms() -> float | None:
            measured = median_reference(references)
            return measured.latency_ms if measured else plan.reference_ms

        visit = Visit(
            prepare=lambda name: load(folder, plan, plan.reference if name == REFERENCE else name),
            workload=plan.workload,
            budget=Budget.of_minutes(minutes),
            store=add,
            reference_ms=reference_ms,
            size=GROUP_SIZE,
            least=len(missing),
            save_every_s=math.inf,
            enough=lambda timings: max(timing.precision for timing in timings.values()) <= plan.precision,
            on_progress=partial(_print_progress, number + 1, plan.passes),
            tolerance=plan.precision,
        )
        visit.measure(shuffled(missing, number))
        timings = {result.name: result.timing for result in file.read() if result.number == number}
        if missing and (message := noise_warning({name: timings[name] for name in missing}, plan.precision)):
            print(f"noisy: {message}", flush=True)


def _print_progress(number: int, passes: int, loaded: int, models: int, rounds: int) -> None:
    if rounds <= 1 and loaded in (0, models):
        print(f"pass {number} of {passes}: {'measuring' if rounds else 'loading'} {models} models", flush=True)


def load(folder: Path, plan: Plan, name: str) -> Call:
    """Loads one model of a plan and returns a call that runs it once.

    Raises:
        InputError: If the model cannot be loaded, or the workload cannot run on this machine.
    """
    workload = plan.workload
    with np.load(folder / plan.inputs[name]) as stored, device_errors_as_input_errors(workload):
        arrays = dict(stored)
        if not workload.needs_torch:
            return RUNTIMES[workload.runtime].call(Path(plan.source(folder, name)), arrays, workload)
    import torch
    import transformers
    from safetensors import SafetensorError

    auto = getattr(transformers, plan.auto_class)
    source, options = plan.source(folder, name), {"trust_remote_code": plan.remote_code}
    try:
        if name in plan.untrained:
            config = transformers.AutoConfig.from_pretrained(source, **options)
            model = auto.from_config(config, dtype=torch.float32, **options)
        else:
            model = auto.from_pretrained(source, dtype=torch.float32, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"model `{source}` cannot be loaded: {short_error(error)}") from None
    return prepare(model, {name: torch.from_numpy(array) for name, array in arrays.items()}, workload)


def check_device(workload: Workload) -> None:
    """Checks that this machine has what a workload needs.

    Raises:
        InputError: If a package or the device is missing.
    """
    missing = [package for package in RUNTIMES[workload.runtime].packages if find_spec(package) is None]
    if missing:
        raise InputError(
            f"`workload.runtime={workload.runtime}` needs {' and '.join(missing)}, which this Python does not have; "
            f"install it with `pip install {' '.join(missing)}`."
        )
    workload.check_available()


def footprint(folder: str, name: str) -> dict[str, float | None]:
    """Peak memory, energy, time to load and time of the first pass of one model of a plan.

    To be called in a process of its own.
    """
    plan = Plan.read(Path(folder))
    start = FirstRun(lambda: load(Path(folder), plan, name), synchronizer(plan.workload))
    import_libraries(plan.workload, plan.source(Path(folder), name), plan.auto_class, plan.remote_code)
    with benchmark_mode(plan.workload):
        memory_mb = peak_memory_mb(start.load, plan.workload)
        times = {"load_ms": start.load_ms, "first_inference_ms": start.first_inference_ms}
        return {"memory_mb": memory_mb, "energy_mj": energy_mj(start.run, plan.workload), **times}


def import_libraries(workload: Workload, source: str, auto_class: str, remote_code: bool = False) -> None:
    """Imports the libraries that run a model, so that they do not count as its memory."""
    for package in RUNTIMES[workload.runtime].packages:
        __import__(package)
    if workload.needs_torch:
        import transformers

        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=remote_code)
        with suppress(KeyError):  # the class comes with the model
            getattr(transformers, auto_class)._model_mapping[type(config)]


def main(folder: Path) -> None:
    """Measures a plan; an input error, Ctrl-C or SIGTERM is printed as one line, with exit code 2."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        measure_plan(folder)
    except InputError as error:
        message = str(error)
    except KeyboardInterrupt:
        message = "stopped; type the same command again to go on."
    else:
        return
    print(f"measure.py: {message}", file=sys.stderr)
    sys.exit(2)

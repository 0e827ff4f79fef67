"""Plan: a folder of models and what is to be measured of them, for a device that has nothing of ours.

What this file imports is copied into the folder, so that there and here the same code measures.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from predictors.measurement.energy import energy_mj
from predictors.measurement.measure import groups, measure_in_calm, quiet
from predictors.measurement.memory import peak_memory_mb
from predictors.measurement.runtimes import Call, onnx_call, prepared
from predictors.measurement.timing import ANCHOR, Timing, median_anchor, noise_warning
from predictors.measurement.workload import Runtime, Workload, device_name, one_line_errors
from search_spaces.errors import InputError

PLAN, RESULTS = "plan.json", "results.jsonl"
NEEDS: dict[Runtime, tuple[str, ...]] = {
    "torch": ("torch", "transformers"),
    "compile": ("torch", "transformers"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("torch", "transformers", "onnx", "openvino"),
}
"""Packages that a runtime needs on the device, besides NumPy."""


@dataclass(frozen=True)
class Plan:
    """What to measure; paths are relative to the plan's folder, or a hub id.

    Attributes:
        workload: On what.
        auto_class: Name of the transformers class that loads model folders.
        models: Name -> model folder, or ONNX file.
        inputs: Name -> file with the arrays that the model is called with.
        anchor: The model that all others are compared with.
        passes: How often each model is loaded and measured, among other models each time.
        precision: Wanted half-width of the confidence interval of a latency, relative.
        anchor_ms: Reference latency of the anchor in milliseconds, if it was measured on the device before.
        remote_code: Whether the modelling files in the folders may run.
        untrained: Models whose folders hold no weights: random ones take as long.
    """

    workload: Workload
    auto_class: str
    models: Mapping[str, str]
    inputs: Mapping[str, str]
    anchor: str
    passes: int
    precision: float
    anchor_ms: float | None = None
    remote_code: bool = False
    untrained: Sequence[str] = ()

    def source(self, folder: Path, name: str) -> str:
        """Where a model is: a path, or a hub id."""
        path = folder / self.models[name]
        return str(path) if path.exists() else self.models[name]

    def write(self, folder: Path) -> None:
        """Writes plan.json."""
        (folder / PLAN).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Reads plan.json.

        Raises:
            InputError: If it is missing or damaged.
        """
        try:
            data = json.loads((folder / PLAN).read_text())
            return cls(**{**data, "workload": Workload.from_dict(data["workload"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"`{folder}` must hold a whole {PLAN}, but it does not ({error}); `nas profile --export` writes one."
            ) from None


@dataclass(frozen=True)
class Result:
    """One line of results.jsonl: which model took how long in which pass, on what."""

    name: str
    number: int
    device_name: str
    workload: Workload
    timing: Timing

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Result:
        """Reads back what `to_dict` wrote.

        Raises:
            ValueError: If a value is none that `measure_plan` writes.
            KeyError, TypeError: If one is missing.
        """
        workload, timing = Workload.from_dict(row["workload"]), Timing.from_dict(row["timing"])
        name, number, device = row["name"], row["number"], row["device_name"]
        if not (isinstance(name, str) and isinstance(device, str)):
            raise ValueError(f"`name` and `device_name` must be texts, but got {name!r} and {device!r}")
        if type(number) is not int or number < 0:
            raise ValueError(f"`number` must be a whole number from 0, but got {number!r}")
        return cls(name, number, device, workload, timing)


def read_results(folder: Path) -> list[Result]:
    """The whole lines of results.jsonl; a last one that a kill cut short is left out.

    Raises:
        InputError: If another line is no result, or has a number that no measurement gives.
    """
    file = folder / RESULTS
    data = file.read_bytes() if file.exists() else b""
    results = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            results.append(Result.from_dict(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"every line of `{file}` must be a measurement, but line {number} is not ({error}); delete that line "
                "and type `python measure.py` on the device to measure it again."
            ) from None
    return results


def measure_plan(folder: Path) -> None:
    """Measures what results.jsonl does not hold yet; each group of models is on the disk before the next begins."""
    plan = Plan.read(folder)
    check_device(plan.workload)
    done = {(result.name, result.number): result.timing for result in read_results(folder)}
    anchors = [timing for (name, _), timing in done.items() if name == ANCHOR]
    if plan.anchor_ms is None and not anchors:
        done = {}  # whose scale is lost
    for number in range(plan.passes):
        missing = [name for name in plan.models if name != plan.anchor and (name, number) not in done]
        for start, group in groups(missing, seed=number):
            calls = {name: load(folder, plan, name) for name in group}
            known = median_anchor(anchors)
            anchor_ms = known.latency_ms if known else plan.anchor_ms
            anchor = load(folder, plan, plan.anchor)
            timed = measure_in_calm(calls, anchor, plan.workload, anchor_ms=anchor_ms, precision=plan.precision)
            new = {(name, number): timed[name] for name in group}
            if plan.anchor_ms is None:
                new = {(ANCHOR, len(anchors)): timed[ANCHOR].uncorrected} | new
                anchors.append(timed[ANCHOR].uncorrected)
            _append(folder, plan.workload, new)
            print(f"pass {number + 1} of {plan.passes}: {start + len(group)} of {len(missing)}", flush=True)
            if said := noise_warning(timed, plan.precision):
                print(f"noisy: {said}", flush=True)


def _append(folder: Path, workload: Workload, timings: Mapping[tuple[str, int], Timing]) -> None:
    data = (folder / RESULTS).read_bytes() if (folder / RESULTS).exists() else b""
    with open(folder / RESULTS, "ab") as file:
        file.truncate(data.rfind(b"\n") + 1)
        for (name, number), timing in timings.items():
            row = Result(name, number, device_name(workload), workload, timing).to_dict()
            file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def load(folder: Path, plan: Plan, name: str) -> Call:
    """A call that runs one model of a plan once, loaded anew.

    Raises:
        InputError: If it cannot be loaded, or its workload cannot run here.
    """
    workload = plan.workload
    with np.load(folder / plan.inputs[name]) as stored, one_line_errors(workload):
        arrays = dict(stored)
        if workload.runtime == "onnxruntime":
            return onnx_call(Path(plan.source(folder, name)), arrays, workload)
    import torch
    import transformers

    auto = getattr(transformers, plan.auto_class)
    source, options = plan.source(folder, name), {"trust_remote_code": plan.remote_code}
    try:
        if name in plan.untrained:
            config = transformers.AutoConfig.from_pretrained(source, **options)
            model = auto.from_config(config, dtype=torch.float32, **options)
        else:
            model = auto.from_pretrained(source, dtype=torch.float32, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"model `{source}` cannot be loaded: {' '.join(str(error).split())[:160]}") from None
    return prepared(model, {name: torch.from_numpy(array) for name, array in arrays.items()}, workload)


def check_device(workload: Workload) -> None:
    """Makes sure that this machine has what a workload needs.

    Raises:
        InputError: If a package or the device is missing.
    """
    missing = [package for package in NEEDS[workload.runtime] if find_spec(package) is None]
    if missing:
        raise InputError(
            f"`workload.runtime={workload.runtime}` needs {' and '.join(missing)}, which this Python does not have; "
            f"`pip install {' '.join(missing)}` brings it."
        )
    workload.check_available()


def footprint(folder: str, name: str) -> dict[str, float | None]:
    """Peak memory and energy of one model of a plan; for a process that does nothing else."""
    plan = Plan.read(Path(folder))
    calls: list[Call] = []

    def first() -> Call:
        calls.append(load(Path(folder), plan, name))
        return calls[0]

    import_libraries(plan.workload, plan.source(Path(folder), name), plan.auto_class, plan.remote_code)
    with quiet(plan.workload):
        memory_mb = peak_memory_mb(first, plan.workload)
        return {"memory_mb": memory_mb, "energy_mj": energy_mj(calls[0], plan.workload)}


def import_libraries(workload: Workload, source: str, auto_class: str, remote_code: bool = False) -> None:
    """Imports what runs a model; libraries are no part of what the model takes."""
    for package in NEEDS[workload.runtime]:
        __import__(package)
    if workload.needs_torch:
        import transformers

        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=remote_code)
        with suppress(KeyError):  # a class that comes with the model is no library
            getattr(transformers, auto_class)._model_mapping[type(config)]


def main(folder: Path) -> None:
    """Measures a plan; a mistake, or a stop by Ctrl-C, is one line and exit code 2."""
    try:
        measure_plan(folder)
    except InputError as error:
        said = str(error)
    except KeyboardInterrupt:
        said = "stopped; type the same command again to go on."
    else:
        return
    print(f"measure.py: {said}", file=sys.stderr)
    sys.exit(2)

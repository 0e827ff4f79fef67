"""Energy of one pass, where a counter exists: RAPL of Intel and AMD processors, NVML of NVIDIA's GPUs."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from predictors.measurement.workload import Workload

POWERCAP = Path("/sys/class/powercap")
SECONDS = 5.0

Counter = Callable[[], float]
"""Joules since some moment."""


def energy_mj(call: Callable[[], object], workload: Workload, seconds: float = SECONDS) -> float | None:
    """Millijoules of one pass above those of an idle device, or None where no counter can be read.

    The counter is of a whole processor or GPU: other work at the same time counts too.

    Args:
        call: Runs the model once.
        workload: Where it runs.
        seconds: How long passes are repeated; a fifth of it the device idles before, to be subtracted.
    """
    joules = counter(workload)
    if joules is None:
        return None
    before, start = joules(), time.perf_counter()
    time.sleep(seconds / 5)
    idle_watts = (joules() - before) / (time.perf_counter() - start)
    before, start, passes = joules(), time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        call()
        passes += 1
    taken = time.perf_counter() - start
    return max(joules() - before - idle_watts * taken, 0.0) / passes * 1e3


def counter(workload: Workload, powercap: Path = POWERCAP) -> Counter | None:
    """What counts the energy of a workload's device, if this process may read it."""
    return _nvml(workload) if workload.on_cuda else _rapl(powercap)


def _rapl(powercap: Path) -> Counter | None:
    """The sum of all processor packages; each counter starts again from 0 at its range."""
    packages = [zone for zone in sorted(powercap.glob("*-rapl:*")) if zone.name.count(":") == 1]
    try:
        ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in packages]
        last = [int((zone / "energy_uj").read_text()) for zone in packages]
    except (OSError, ValueError):
        return None
    total = 0

    def joules() -> float:
        nonlocal total
        for number, zone in enumerate(packages):
            now = int((zone / "energy_uj").read_text())
            total += (now - last[number]) % ranges[number]
            last[number] = now
        return total / 1e6

    return joules if packages else None


def _nvml(workload: Workload) -> Counter | None:
    if find_spec("pynvml") is None:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(workload.device_index)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3

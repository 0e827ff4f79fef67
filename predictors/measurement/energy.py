"""Energy of one pass, read from RAPL (Intel and AMD processors) or NVML (NVIDIA GPUs)."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from predictors.measurement.workload import Workload, visible_gpu

POWERCAP = Path("/sys/class/powercap")
SECONDS = 5.0

Counter = Callable[[], float]
"""Returns the joules used since a fixed moment."""


def energy_mj(call: Callable[[], object], workload: Workload, seconds: float = SECONDS) -> float | None:
    """Millijoules of one pass, less those of the idle device; None if there is no counter that can be read.

    The counter covers the processor or GPU as one: other work at the same time is counted too.

    Args:
        call: Runs the model once.
        workload: Names the device.
        seconds: How long passes are repeated. Before, the idle device is measured for a fifth of this time.
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
    elapsed = time.perf_counter() - start
    return max(joules() - before - idle_watts * elapsed, 0.0) / passes * 1e3


def counter(workload: Workload, powercap: Path = POWERCAP) -> Counter | None:
    """The energy counter of a workload's device; None if this process cannot read one."""
    return _nvml(workload) if workload.on_cuda else _rapl(powercap)


def _rapl(powercap: Path) -> Counter | None:
    """The sum over all processor packages; each counter wraps to 0 at the end of its range."""
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
        name = visible_gpu(workload.device_index)
        by = pynvml.nvmlDeviceGetHandleByIndex if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID
        gpu = by(int(name) if name.isdigit() else name)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3

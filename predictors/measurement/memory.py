"""Memory of a device, and peak memory of a process that loads one model and does nothing else."""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from predictors.measurement.workload import Workload

KIB = 1024
"""Bytes in the unit in which Linux counts memory, which it writes as kB; a megabyte here is 10^6 bytes."""


def memory_mb(workload: Workload) -> float:
    """Total memory of a workload's device in MB."""
    if workload.on_cuda:
        import torch

        if not torch.cuda.is_available():
            return math.inf
        return torch.cuda.get_device_properties(workload.device).total_memory / 1e6
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6


def peak_memory_mb(load: Callable[[], Callable[[], object]], workload: Workload) -> float | None:
    """Peak memory in MB that this process needs in addition, to load a model and run it.

    On a GPU it is the memory that PyTorch allocated there. It is None for ONNX Runtime on a GPU, which has no counter.

    Args:
        load: Loads the model and returns a call that runs it; its imports should have been done before.
        workload: Names the device and runtime.
    """
    reset_peak_memory()
    before = peak_mb()
    call = load()
    for _ in range(3):
        call()
    if workload.on_cuda and not workload.needs_torch:
        return None
    if workload.on_cuda:
        import torch

        return torch.cuda.max_memory_allocated(workload.device) / 1e6
    return peak_mb() - before


def peak_mb() -> float:
    """Peak memory of this process in MB; on Linux, since `reset_peak_memory`."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * KIB / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else KIB) / 1e6


def reset_peak_memory() -> None:
    """Resets the peak to the current memory of this process, where the operating system supports it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")

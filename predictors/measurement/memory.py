"""Memory: what a device has, and the peak of this process, for processes that load one model and nothing else."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from predictors.measurement.workload import Workload


def memory_mb(workload: Workload) -> float:
    """What the device of a workload has, in MB."""
    if workload.on_cuda:
        import torch

        return torch.cuda.get_device_properties(workload.device).total_memory / 1e6
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6


def peak_memory_mb(load: Callable[[], Callable[[], object]], workload: Workload) -> float | None:
    """What loading a model and running it added at most to this process, in MB.

    On a GPU it is what PyTorch allocated there, by CUDA's counter; None where ONNX Runtime runs it, which has none.

    Args:
        load: Makes the call; what it imports should have been imported before.
        workload: Where it runs.
    """
    forget_peak()
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
    """The most memory this process has had, in MB; on Linux, since `forget_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def forget_peak() -> None:
    """Sets the peak to what is held now, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")

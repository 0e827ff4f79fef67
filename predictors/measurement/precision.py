"""Precision: the dtypes of linear layers that a runtime and device support, and those that are useful for a search."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from predictors.measurement.runtimes import RUNTIMES
from predictors.measurement.workload import Workload
from search_spaces.dimensions.bits import FULL_PRECISION, ROUNDS_ACTIVATIONS

IMPROVES = {
    "bfloat16": ("latency_ms", "size_mb"),
    "int8": ("latency_ms", "size_mb"),
    "int8-weight": ("size_mb",),
    "int4-weight": ("size_mb",),
}
"""Dtype -> the costs it can improve; ``int8-weight`` and ``int4-weight`` are dequantized before each product."""


def unsupported_reason(bits: str, workload: Workload, names: Collection[str]) -> str:
    """Why a dtype of linear layers cannot run or is not useful; empty if it can run and is useful.

    Args:
        bits: One of `search_spaces.dimensions.bits.BITS`.
        workload: The workload that latency is measured on.
        names: Metrics and costs that are objectives or constraints of the search.
    """
    if bits == FULL_PRECISION:
        return ""
    if workload.dtype != "float32":
        return f"`workload.dtype` {workload.dtype} already applies to all layers"
    if bits in ROUNDS_ACTIVATIONS and bits not in RUNTIMES[workload.runtime].layer_dtypes:
        return f"the runtime {workload.runtime} has no such kernels"
    if bits == "bfloat16" and not _has_bfloat16(workload):
        return f"this machine's {workload.device} has no such instructions"
    if bits == "int8" and workload.on_cuda:
        return "it only runs on the cpu"
    if not set(IMPROVES[bits]) & set(names):
        costs = " and ".join(IMPROVES[bits])
        return f"it only reduces {costs}, which is neither an objective nor a constraint"
    return ""


def _has_bfloat16(workload: Workload) -> bool:
    if not workload.on_cuda:
        return _cpu_has("bf16")
    import torch

    return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has(*flags: str) -> bool:
    """Whether one of these texts occurs in the flags of /proc/cpuinfo."""
    try:
        return any(flag in Path("/proc/cpuinfo").read_text() for flag in flags)
    except OSError:
        return False

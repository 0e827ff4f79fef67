"""Precision: in which kinds of bits a workload's runtime and device can multiply, and which of them can pay."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from predictors.measurement.workload import Workload
from search_spaces.dimensions.bits import FULL_PRECISION

PAYS_IN = {
    "bfloat16": ("latency_ms", "size_mb"),
    "int8": ("latency_ms", "size_mb"),
    "int8-weight": ("size_mb",),
    "int4-weight": ("size_mb",),
}
"""Kind of bits -> the figures it can improve; rounded weights are made whole again before they are multiplied."""

RUNTIMES_OF = {"bfloat16": ("torch", "compile"), "int8": ("torch", "onnxruntime")}
"""Kind of bits that not every runtime multiplies in -> those that do."""


def why_not(bits: str, workload: Workload, figures: Collection[str]) -> str:
    """Why layers in a kind of bits cannot run or pay; empty where they can.

    Args:
        bits: One of `search_spaces.dimensions.bits.BITS`.
        workload: What latency is measured on.
        figures: What a search is asked to improve or to bound.
    """
    if bits == FULL_PRECISION:
        return ""
    if workload.dtype != "float32":
        return f"`workload.dtype` {workload.dtype} holds for all layers already"
    if workload.runtime not in RUNTIMES_OF.get(bits, (workload.runtime,)):
        return f"{workload.runtime} does not multiply in it"
    if bits == "bfloat16" and not _multiplies_bfloat16(workload):
        return f"the {workload.device} here does not multiply in it"
    if bits == "int8" and workload.on_cuda:
        return "it runs on the cpu only"
    if bits == "int8" and workload.runtime == "onnxruntime" and not has_vnni():
        return "without VNNI the cpu here would overflow when it adds products of eight bits"
    if not set(PAYS_IN[bits]) & set(figures):
        return f"it pays in {' and '.join(PAYS_IN[bits])} only, which no objective or constraint names"
    return ""


def has_vnni() -> bool:
    """Whether the processor adds int8 products without overflow."""
    return _cpu_has("vnni", "asimddp")


def _multiplies_bfloat16(workload: Workload) -> bool:
    if not workload.on_cuda:
        return _cpu_has("bf16")
    import torch

    return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has(*flags: str) -> bool:
    """Whether one of the names is part of those of the processor's abilities."""
    try:
        return any(flag in Path("/proc/cpuinfo").read_text() for flag in flags)
    except OSError:
        return False

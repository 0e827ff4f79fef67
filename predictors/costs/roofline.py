"""Roofline model: lower bound on latency by peak arithmetic and memory bandwidth (Williams et al. 2009)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from predictors.costs.analytic import AnalyticCosts
from predictors.costs.block_costs import BlockCost
from predictors.costs.cost_table import CostTable
from predictors.measurement.workload import Workload
from search_spaces import SubnetBatch, SubnetConfig

MATRIX, VECTOR_BYTES, REPEATS = 1024, 2**27, 5
"""Rows of the square matrices that are multiplied, bytes that are copied (more than any cache), and repeats."""
PROBED_BYTES = 2 * VECTOR_BYTES
"""Memory that measuring a device takes."""


@dataclass(frozen=True)
class DevicePeak:
    """Peak performance of a device with the dtype and threads of a workload.

    Attributes:
        macs_per_second: Multiply-accumulates per second in a large matrix product.
        bytes_per_second: Bytes read and written per second while a large vector is copied.
    """

    macs_per_second: float
    bytes_per_second: float

    @classmethod
    def measure(cls, workload: Workload) -> DevicePeak:
        """Measures both in PyTorch in about a second, as the fastest of five repeats.

        Raises:
            InputError: If the device is not on this machine.
        """
        import torch

        workload.check_available()
        options = {"dtype": getattr(torch, "float32" if workload.dtype == "int8" else workload.dtype)}
        threads = torch.get_num_threads()
        torch.set_num_threads(workload.threads)
        try:
            a = torch.ones(MATRIX, MATRIX, device=workload.device, **options)
            source = torch.ones(VECTOR_BYTES // 4, device=workload.device)
            target = torch.empty_like(source)
            product_s = _fastest(lambda: torch.mm(a, a), workload)
            copy_s = _fastest(lambda: target.copy_(source), workload)
        finally:
            torch.set_num_threads(threads)
        return cls(MATRIX**3 / product_s, PROBED_BYTES / copy_s)


def _fastest(call: Callable[[], object], workload: Workload) -> float:
    """Seconds of the fastest of five calls, after an untimed one."""
    import torch

    times = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        call()
        if workload.on_cuda:
            torch.cuda.synchronize(workload.device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def roofline_ms(
    costs: AnalyticCosts, subnets: Sequence[SubnetConfig], workload: Workload, peak: DevicePeak
) -> np.ndarray:
    """Roofline latency of subnetworks: (n,) milliseconds.

    It is the sum over the blocks of the longer of arithmetic time and memory time. Weights are read once, activations
    are read from and written to memory, and the key-value cache is read in phase ``decode``. All have the workload's
    dtype; the bits of single layers are ignored.
    """
    batch = SubnetBatch.from_subnets(subnets, costs.layout.parent.num_hidden_layers)
    table = CostTable(costs.block_costs, batch, workload.sequence_length)
    activation_bytes = workload.batch_size * workload.activation_bytes

    def seconds(cost: BlockCost) -> np.ndarray:
        arithmetic = workload.batch_size * cost.macs / peak.macs_per_second
        traffic = (
            cost.weights * workload.weight_bytes + cost.memory_traffic * activation_bytes
        ) / peak.bytes_per_second
        return np.maximum(arithmetic, traffic)

    cache_read = table.sum(lambda cost: cost.kv_cache) * activation_bytes / peak.bytes_per_second
    return 1e3 * (costs.call_table(table, workload).sum(seconds) + (cache_read if workload.phase == "decode" else 0.0))

"""The device on which models are trained and scored, and the threads of its CPU."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from predictors import Workload
from predictors.measurement.memory import memory_mb

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from nas.runs.run import Run

WEIGHTS_SHARE = 0.9
"""Most of the memory of a device for the weights of a model; the rest is for what it computes."""

PROBE_SHAPE = (256, 384, 1536)
"""Rows, inputs and outputs of the product that is timed: a feed-forward layer of a small model."""
PROBE_CALLS = 30


def training_device() -> str:
    """Where models are trained and the supernet is scored; latency is measured on the workload's own device."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def fits(model: PreTrainedModel, device: torch.device | str) -> bool:
    """Whether the weights of a model, which the machine's memory holds, fit into that of a device too."""
    if not str(device).startswith("cuda"):
        return True
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights <= 1e6 * WEIGHTS_SHARE * memory_mb(Workload(device=str(device)))


def moved(model: PreTrainedModel, device: torch.device | str) -> PreTrainedModel:
    """Moves a model to a device, or to the CPU if its weights exceed that."""
    return model.to(device if fits(model, device) else "cpu")


def set_threads(run: Run) -> None:
    """Computes in one thread, if more are slower while other processes keep this machine's cores busy.

    Threads that wait for one whose core is busy take many times as long as one alone. The number is that of the run's
    first command, so that a resumed training repeats its sums.
    """
    import torch

    threads = run.threads or faster_threads()
    if run.threads is None:
        run.threads = threads
    torch.set_num_threads(min(threads, torch.get_num_threads()))


def faster_threads() -> int:
    """All threads of PyTorch, or one if that computes a matrix product faster at the moment."""
    import torch

    threads = torch.get_num_threads()
    if threads == 1:
        return 1
    rows, inputs, outputs = PROBE_SHAPE
    x, weight = torch.ones(rows, inputs), torch.ones(inputs, outputs)
    seconds = {}
    for number in (threads, 1):
        torch.set_num_threads(number)
        x @ weight
        start = time.perf_counter()
        for _ in range(PROBE_CALLS):
            x @ weight
        seconds[number] = time.perf_counter() - start
    torch.set_num_threads(threads)
    return min(seconds, key=seconds.__getitem__)

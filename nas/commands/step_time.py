"""StepTime: how long a model's passes take on this machine, from one timed layer of its shape, without its weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas.recipe.schema import Training
from nas.stages.needs import meta_model
from nas.supernets.device import training_device
from nas.supernets.space import search_space
from nas.tasks.context import TaskContext
from predictors import AnalyticCosts, Workload

if TYPE_CHECKING:
    import torch

TRAINER_S = 0.006
"""Seconds of a training step that the Trainer takes: collating, scheduling, logging."""
HEAD_SIZE = 64
"""Usual channels of an attention head."""
MAX_MACS = 4e9
"""Multiply-accumulates of the timed layer; a larger one is timed on fewer tokens."""
WARM_UP, REPEATS, ENOUGH_S = 1, 20, 0.5
"""Untimed calls, most timed calls, and seconds after which two timed calls are enough."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of the parent's passes.

    Attributes:
        train_s: Forward and backward of one example.
        optimizer_s: Step of the optimizer.
        score_s: Forward of one example of the search split, in a batch.
        workload_s: One call under each of the recipe's workloads.
    """

    train_s: float
    optimizer_s: float
    score_s: float
    workload_s: float

    def training_s(self, settings: Training, examples: float, passes: float = 1.0) -> float:
        """Seconds of a training.

        Args:
            settings: Its epochs and batch size.
            examples: Examples of an epoch.
            passes: Time of a step's passes, relative to the parent's.
        """
        if settings.minutes is not None:
            return 60 * settings.minutes
        steps = settings.num_train_epochs * math.ceil(examples / settings.batch_size)
        batch = min(settings.batch_size, examples)
        return steps * (batch * self.train_s * passes + self.optimizer_s + TRAINER_S)

    @classmethod
    def measure(cls, context: TaskContext) -> StepTime:
        """Times one transformer layer with as many multiply-accumulates as an average layer of the parent."""
        import torch

        recipe = context.recipe
        costs = AnalyticCosts.from_model(meta_model(context), context.layout, recipe.task.type, context.dtype)
        (batch,) = context.splits.search.labelled_batches(1)
        length = batch["input_ids"].shape[1] if "input_ids" in batch else None
        layers = sum(map(len, search_space(context).stacks))
        device = training_device()
        trained = _Layer(context, costs, length, layers, recipe.parent.batch_size, device)
        optimizer = torch.optim.AdamW(trained.layer.parameters())
        train_s = _fastest_s(trained.train_step, device)
        optimizer_s = (
            _fastest_s(optimizer.step, device) * costs_of(costs, context, "num_parameters") / trained.parameters
        )
        with torch.inference_mode():
            score_s = _fastest_s(trained.forward, device)
            each_s = [_call_s(context, costs, layers, workload) for workload in recipe.named_workloads.values()]
        return cls(
            train_s=train_s * trained.scale,
            optimizer_s=optimizer_s,
            score_s=score_s * trained.scale,
            workload_s=sum(each_s),
        )


def _call_s(context: TaskContext, costs: AnalyticCosts, layers: int, workload: Workload) -> float:
    """Seconds of one call of the parent under a workload."""
    import torch

    called = _Layer(context, costs, workload.sequence_length, layers, workload.batch_size, workload.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(workload.threads)
    try:
        return _fastest_s(called.forward, workload.device) * called.scale * workload.batch_size
    finally:
        torch.set_num_threads(threads)


class _Layer:
    """One layer of the parent's width and of its average multiply-accumulates, on a batch.

    Attributes:
        scale: Factor from a call of this layer to one example through the parent.
    """

    def __init__(
        self, context: TaskContext, costs: AnalyticCosts, length: int | None, layers: int, batch: int, device: str
    ) -> None:
        import torch

        hidden = context.layout.parent.hidden_size
        tokens = context.layout.inputs.longest_sequence(length)
        macs = float(costs.macs(context.layout.parent, length)) / layers
        ffn = max(8, round((macs / tokens - 4 * hidden**2 - 2 * tokens * hidden) / (2 * hidden)))
        heads = max(n for n in range(1, hidden // HEAD_SIZE + 2) if hidden % n == 0)
        used = max(1, min(tokens, int(MAX_MACS * tokens / macs)))
        self.batch = max(1, min(batch, int(MAX_MACS / macs)))
        self.scale = layers * tokens / used / self.batch
        options: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True}
        with torch.device(device), torch.inference_mode(False):
            self.layer = torch.nn.utils.skip_init(torch.nn.TransformerEncoderLayer, hidden, heads, ffn, **options)
            for parameter in self.layer.parameters():
                torch.nn.init.constant_(parameter, 0.01)
            self.inputs = torch.ones(self.batch, used, hidden)
        self.parameters = sum(parameter.numel() for parameter in self.layer.parameters())

    def forward(self) -> torch.Tensor:
        return self.layer.train()(self.inputs)  # in evaluation it would take a fused path that models do not have

    def train_step(self) -> None:
        self.forward().sum().backward()


def costs_of(costs: AnalyticCosts, context: TaskContext, name: str) -> float:
    """One cost of the parent."""
    return float(costs.count((name,), [context.layout.parent], context.recipe.workload)[name][0])


def _fastest_s(call: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of several calls."""
    import torch

    times: list[float] = []
    while len(times) < WARM_UP + REPEATS and (len(times) < WARM_UP + 2 or sum(times) < ENOUGH_S):
        start = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[WARM_UP:])

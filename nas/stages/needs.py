"""What each stage of a run needs, counted from the shapes of the parent: memory beside its libraries, and disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nas.recipe.schema import Training
from nas.supernets.compensation import is_compensated
from nas.supernets.device import training_device
from nas.supernets.load import calibration_batch
from nas.supernets.space import search_space
from nas.tasks.context import TaskContext
from predictors import AnalyticCosts, Workload
from predictors.measurement.groups import group_size
from predictors.measurement.memory import memory_mb

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHT_BYTES = 4
"""Bytes of a weight that is trained, and of a weight of an export while it is checked in a process of its own."""
TRAINING_BYTES = 16
"""Bytes a weight in a training: it, its gradient and the two averages of the optimizer."""
CHECKPOINT_BYTES, CHECKPOINTS = 12, 3
"""Bytes a weight of a checkpoint, and how many there are while one is written."""
PREPARED = 2
"""Copies of the weights of a model that is loaded and prepared to be timed in another runtime than PyTorch."""
GB = 1e9


@dataclass(frozen=True)
class Needs:
    """What a stage needs.

    Attributes:
        memory_gb: Peak memory of the device that trains, beside its libraries.
        disk_gb: What it writes, while it runs.
    """

    memory_gb: float
    disk_gb: float


def stage_needs(context: TaskContext, model: PreTrainedModel) -> dict[str, Needs]:
    """Name of a stage -> what it needs, for the stages that load weights.

    Args:
        context: Of a recipe.
        model: The parent; it may have no memory for its weights (``meta``).
    """
    return _Count(context, model).stages()


def meta_model(context: TaskContext) -> PreTrainedModel:
    """The parent without memory for its weights."""
    import transformers

    with torch.device("meta"):
        return getattr(transformers, context.auto_class).from_config(context.config)


def available_gb() -> float:
    """Memory of the device that trains."""
    return memory_mb(Workload(device=training_device())) / 1e3


class _Count:
    """The arithmetic for one parent; everything is in GB."""

    def __init__(self, context: TaskContext, model: PreTrainedModel) -> None:
        self.context, self.recipe, self.layout = context, context.recipe, context.layout
        self.costs = AnalyticCosts.from_model(model, context.layout, self.recipe.task.type, context.dtype)
        self.parameters = sum(p.numel() for p in model.parameters()) / GB
        self.weights = context.memory_dtype.itemsize * self.parameters
        self.file = self._cost("size_mb", Workload())
        self.moments = WEIGHT_BYTES * sum(self._inputs(name) ** 2 for name, _ in model.named_parameters()) / GB

    def stages(self) -> dict[str, Needs]:
        """See `stage_needs`."""
        finish, checked = self.recipe.finish, self.weights + max(self.weights, WEIGHT_BYTES * self.parameters)
        trains = max(self.weights, WEIGHT_BYTES * self.parameters if finish.models else 0.0)
        trained = self.recipe.supernet if self.recipe.supernet.is_trained else None
        verified = self.weights + max(map(self._verified, self._workloads))
        halves = self.moments / 2  # of symmetric matrices; their pages are read from the file when they are needed
        loaded = self.weights + halves
        scored = self._activations(self.context.splits.task.evaluation_batch_size)
        parent = self.weights if self.recipe.relative_bounds and trained else 0.0
        finished = self._training(finish, teacher=True) if finish.models else 0.0
        return {
            "parent": self._parent(),
            "supernet": Needs(
                max(self._ordering(), self._training(trained, teacher=True)),
                self.weights + self.moments / 2 + self._checkpoints(trained is not None),
            ),
            "profile": Needs(self.weights + max(map(self._profiled, self._workloads)) + halves, 0.0),
            "search": Needs(loaded + parent + scored, 0.0),
            "finish": Needs(
                trains + halves + finished, finish.models * self.weights + self._checkpoints(finish.models > 0)
            ),
            "verify": Needs(max(checked, verified) + halves, self.file),
            "export": Needs(checked + halves, self.file),
        }

    @property
    def _workloads(self) -> list[Workload]:
        return list(self.recipe.named_workloads.values())

    def _profiled(self, workload: Workload) -> float:
        """Models that are timed together: in PyTorch the weights themselves, or copies in another dtype or place."""
        held = self.context.memory_dtype, training_device()
        if workload.runtime == "torch" and (getattr(torch, workload.dtype, None), workload.device) == held:
            return 0.0
        return self._candidate(workload) * (1 + self._group(workload))

    def _verified(self, workload: Workload) -> float:
        """Models that are timed together, which were exported and loaded; the first is the parent."""
        return self._candidate(workload) * self._group(workload)

    def _group(self, workload: Workload) -> int:
        size_mb = 1e3 * self._cost("size_mb", workload)
        return min(group_size(size_mb, memory_mb(workload)), self.recipe.profile.samples)

    def _candidate(self, workload: Workload) -> float:
        copies = 1 if workload.runtime == "torch" else PREPARED
        return copies * workload.activation_bytes * self.parameters

    def _parent(self) -> Needs:
        settings = self.recipe.parent if self.context.should_finetune else None
        trained = self._training(settings, teacher=False)
        return Needs(max(self.weights, trained), self.file + self._checkpoints(settings is not None))

    def _checkpoints(self, is_trained: bool) -> float:
        return CHECKPOINTS * CHECKPOINT_BYTES * self.parameters if is_trained else 0.0

    def _training(self, settings: Training | None, *, teacher: bool) -> float:
        """Weights, gradients, optimizer, activations and the teacher of a training; 0 where there is none."""
        if settings is None:
            return 0.0
        layers = 1 if settings.activation_checkpointing else len(self.layout.parent.layers)
        return (TRAINING_BYTES + teacher * WEIGHT_BYTES) * self.parameters + layers * self._activations(
            settings.batch_size
        )

    def _ordering(self) -> float:
        """The importance of weights, by gradients or activations, and what slices compensate."""
        if self.recipe.supernet.order == "gradient":
            return self.weights + len(self.layout.parent.layers) * self._activations(
                calibration_batch(self.context.splits.task)
            )
        return self.weights + self._activations(calibration_batch(self.context.splits.task)) + self.moments

    def _activations(self, batch_size: int) -> float:
        """The largest activations of one layer on a batch of the task."""
        length = self.recipe.task.max_length if self.context.task.reads_text else None
        return self._cost("peak_activation_mb", Workload(batch_size=batch_size, sequence_length=length))

    def _cost(self, name: str, workload: Workload) -> float:
        """One cost of the parent."""
        return float(self.costs.count((name,), [self.layout.parent], workload)[name][0]) / 1e3

    def _inputs(self, name: str) -> int:
        """Inputs of a linear layer whose moments are kept; 0 for any other weight."""
        recipe, location = self.recipe.supernet, self.layout.locate(name)
        axes = self.layout.shapes.linear_axes(location)
        if not axes or not name.endswith(".weight"):
            return 0
        kept = search_space(self.context).needs_calibration or (
            not recipe.is_trained and is_compensated(self.layout, name)
        )
        return self.layout.shapes.size(axes[1], self.layout.full_sizes[location.stack or 0]) if kept else 0  # type: ignore[arg-type]

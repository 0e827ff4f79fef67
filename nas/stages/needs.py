"""What each stage of a run needs, counted from the shapes of the parent: memory beside its libraries, and disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nas.recipe.schema import Training
from nas.supernets.compensation import KEPT, is_compensated
from nas.supernets.device import WEIGHTS_SHARE, training_device
from nas.supernets.load import calibration_batch
from nas.supernets.space import search_space
from nas.tasks.context import TaskContext
from nas.tasks.few_labels import CHUNK
from predictors import AnalyticCosts, Workload
from predictors.costs.roofline import PROBED_BYTES
from predictors.measurement.groups import group_size
from predictors.measurement.memory import memory_mb
from search_spaces import InputError
from search_spaces.dimensions import DIMENSIONS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHT_BYTES = 4
"""Bytes of a weight that is trained, of a moment, and of a weight of an export while it is checked in a process of its
own."""
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


def available_gb(device: str) -> float:
    """Memory of a device."""
    return memory_mb(Workload(device=device)) / 1e3


def holder(context: TaskContext, model: PreTrainedModel) -> str:
    """The device whose memory holds the weights: that of the trainings, or the machine's own where they exceed that.

    There the layers' weights are copied to the first one while they are multiplied, see `Supernet.to`.

    Raises:
        InputError: If they exceed the machine's memory, or that of a device that needs all of them at once.
    """
    device, recipe = training_device(), context.recipe
    weights = context.memory_dtype.itemsize * model.num_parameters() / GB
    takes = f"but they take {weights:.3g} GB in {str(context.memory_dtype)[6:]}"
    if weights > available_gb("cpu"):
        raise InputError(
            f"the weights of a model must fit into the machine's memory, as subnetworks are slices of them, {takes} "
            f"and the cpu has {available_gb('cpu'):.3g}; take a larger one, or store the model in bfloat16."
        )
    has = available_gb(device)
    if device == "cpu" or weights <= WEIGHTS_SHARE * has:
        return device
    out = f"{takes} and the {device} has {has:.3g}; take a larger one, or the machine's own (`CUDA_VISIBLE_DEVICES=`)"
    if context.should_finetune or recipe.supernet.is_trained or recipe.finish.models:
        raise InputError(
            f"the weights of a model that is trained must fit on one device, {out}, or train nothing "
            "(`supernet.strategy: none`, `finish.models: 0`)."
        )
    if any(workload.on_cuda for workload in recipe.named_workloads.values()):
        raise InputError(
            f"the weights of a parent whose latency is measured must fit on that device, {out}, or measure on another "
            "(`workload.device: cpu`)."
        )
    return "cpu"


class _Count:
    """The arithmetic for one parent; everything is in GB."""

    def __init__(self, context: TaskContext, model: PreTrainedModel) -> None:
        self.context, self.recipe, self.layout = context, context.recipe, context.layout
        self.costs = AnalyticCosts.from_model(model, context.layout, self.recipe.task.type, context.dtype)
        self.bytes = context.memory_dtype.itemsize
        sizes = {name: p.numel() / GB for name, p in model.named_parameters()}
        self.parameters, self.table = sum(sizes.values()), max(sizes.values())
        self.outside = sum(size for name, size in sizes.items() if self.layout.locate(name).layer is None)
        self.weights = self.bytes * self.parameters
        self.file = self._cost("size_mb", Workload())
        entries = {name: self._moments(name) for name in sizes}
        self.moments = sum(entries.values()) * WEIGHT_BYTES / 2 / GB
        self.largest = max(entries.values()) / GB
        self.kept = {name: self._kept(name) for name in sizes if self._compensates(name)}
        self.narrower = self.bytes * sum(sizes[name] * min(KEPT, sum(kept)) for name, kept in self.kept.items())

    def stages(self) -> dict[str, Needs]:
        """See `stage_needs`."""
        finish, trained = self.recipe.finish, self.recipe.supernet if self.recipe.supernet.is_trained else None
        supernet = self.weights + self.narrower
        parent = self.weights if self.recipe.relative_bounds and trained else 0.0
        trains = max(self.weights, WEIGHT_BYTES * self.parameters if finish.models else 0.0)
        finished = self._training(finish, teacher=True) if finish.models else 0.0
        return {
            "parent": self._parent(),
            "supernet": Needs(
                max(self._ordering(), self._training(trained, teacher=True)),
                self.weights + self.moments + self._checkpoints(trained is not None),
            ),
            "profile": Needs(self.weights + max(PROBED_BYTES / GB, *map(self._profiled, self._workloads)), 0.0),
            "search": Needs(supernet + parent + max(self._scored(), self._solved()), 0.0),
            "finish": Needs(trains + finished, finish.models * self.weights + self._checkpoints(finish.models > 0)),
            "verify": Needs(
                supernet + max(self.weights + self._scored(), *map(self._verified, self._workloads)), self.file
            ),
            "export": Needs(max(2 * self.weights + self._exact(), self._reloaded()), self.file),
        }

    @property
    def _workloads(self) -> list[Workload]:
        return list(self.recipe.named_workloads.values())

    def _profiled(self, workload: Workload) -> float:
        """Models that are timed together: in PyTorch the weights themselves, or copies in another dtype or place."""
        held = self.context.memory_dtype, training_device()
        if workload.runtime == "torch" and (getattr(torch, workload.dtype, None), workload.device) == held:
            return self._cost("peak_activation_mb", workload)
        return self._candidate(workload) * (1 + self._group(workload))

    def _verified(self, workload: Workload) -> float:
        """Models that are timed together, which were exported and loaded; the last one is compared meanwhile."""
        return self._candidate(workload) * self._group(workload) + self._exact()

    def _group(self, workload: Workload) -> int:
        size_mb = 1e3 * self._cost("size_mb", workload)
        return min(group_size(size_mb, memory_mb(workload)), self.recipe.profile.samples)

    def _candidate(self, workload: Workload) -> float:
        copies = 1 if workload.runtime == "torch" else PREPARED
        return copies * workload.activation_bytes * self.parameters

    def _exact(self) -> float:
        """What computing in float32 takes beside weights of 16 bits: what is in no layer, and one layer."""
        layers = len(self.layout.parent.layers)
        is_half = self.bytes < WEIGHT_BYTES
        return WEIGHT_BYTES * (self.outside + (self.parameters - self.outside) / layers) if is_half else 0.0

    def _reloaded(self) -> float:
        """An export in a process of its own: its file, whose pages count while they are read, and it in float32."""
        return self.weights + WEIGHT_BYTES * self.parameters

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
        batch, layers = calibration_batch(self.context.splits.task), len(self.layout.parent.layers)
        moments = self.moments + WEIGHT_BYTES / 2 * self.largest  # the last triangle is copied
        outputs = self._activations(batch) + self._logits(batch)
        scored = layers * self._activations(batch) + 2 * self._logits(batch)  # with their gradients
        is_by_gradient = self.recipe.supernet.order == "gradient"
        return self.weights + max(self.bytes * self.table, moments + outputs, scored if is_by_gradient else 0.0)

    def _scored(self) -> float:
        """What scoring a batch of the task takes."""
        batch = self.context.splits.task.evaluation_batch_size
        return self._activations(batch) + self._logits(batch)

    def _solved(self) -> float:
        """What solving for a slice of a layer takes: its moments, parts of them, their factor and the shares.

        Moments are in float32, of which the parts for the inputs that remain are copied to float64.
        """
        most = max((part for kept in self.kept.values() for part in kept), default=0.0)
        return WEIGHT_BYTES * max(1 + 2 * most, 4 * most) * self.largest if most else 0.0

    def _kept(self, name: str) -> list[float]:
        """Shares of the inputs of a layer that its narrower slices keep."""
        location = self.layout.locate(name)
        axis = (self.layout.shapes.linear_axes(location) or location.axes)[-1]
        dimension = next(each.name for each in DIMENSIONS.values() if axis in each.axes)
        full = getattr(self.layout.parent, dimension)[location.layer or 0]
        return [choice / full for choice in search_space(self.context).choices_of(dimension) if 0 < choice < full]

    def _logits(self, batch_size: int) -> float:
        """Logits over a vocabulary, in the dtype of the model, and a few of them in float32 with their losses."""
        if not self.context.splits.task.has_vocabulary_logits:
            return 0.0
        logits = batch_size * self.recipe.task.max_length * self.context.config.vocab_size
        return (self.bytes * logits + 3 * WEIGHT_BYTES * min(logits, CHUNK)) / GB

    def _activations(self, batch_size: int) -> float:
        """The largest activations of one layer on a batch of the task."""
        length = self.recipe.task.max_length if self.context.task.reads_text else None
        of_float32 = self._cost("peak_activation_mb", Workload(batch_size=batch_size, sequence_length=length))
        return of_float32 * self.bytes / WEIGHT_BYTES

    def _cost(self, name: str, workload: Workload) -> float:
        """One cost of the parent."""
        return float(self.costs.count((name,), [self.layout.parent], workload)[name][0]) / 1e3

    def _moments(self, name: str) -> int:
        """Entries of the moments that are kept for a weight: of its inputs, or those of each expert; 0 for others."""
        location = self.layout.locate(name)
        axes = self.layout.shapes.linear_axes(location)
        is_linear = axes and name.endswith(".weight")
        if not self._compensates(name) and not (is_linear and search_space(self.context).needs_calibration):
            return 0
        sizes = self.layout.full_sizes[location.stack or 0]
        experts = sizes["experts"] if self.layout.shapes.is_of_experts(location) else 1
        return experts * self.layout.shapes.size((axes or location.axes)[-1], sizes) ** 2  # type: ignore[arg-type]

    def _compensates(self, name: str) -> bool:
        return not self.recipe.supernet.is_trained and is_compensated(self.layout, name)

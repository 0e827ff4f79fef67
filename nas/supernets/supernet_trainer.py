"""SupernetTrainer: trains all subnetworks of a space together, on labels and on a teacher's outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from nas.supernets.relation_distillation import (
    HiddenStateRecorder,
    HiddenStates,
    RelationSource,
    detach_states,
    relation_loss,
)
from nas.supernets.strategies import Strategy, TrainingPass
from nas.supernets.supernet import Supernet
from nas.supernets.training import OTHER_SIZES, DistillationTrainer, of_input_size
from nas.tasks.batches import model_inputs
from nas.tasks.losses import LogitsAndLabels
from search_spaces import InputError, SubnetConfig
from search_spaces.dimension import FULL

DistillationOutputs = tuple[list[LogitsAndLabels], HiddenStates]
"""The logits that are scored with their labels, and the states whose relations are distilled."""


class SupernetTrainer(DistillationTrainer):
    """Trains one or more subnetworks in every step, then updates the shared weights once.

    Every subnetwork learns from the teacher: the fixed fine-tuned parent, as in DynaBERT (arXiv 2004.04037), or the
    largest subnetwork of the same step (in-place distillation), as in universally slimmable networks (arXiv
    1903.05134). The sampled subnetworks depend only on the seed and the step, so a resumed training samples the same
    ones. Several processes sample the same subnetworks, train them on different batches, and average their gradients
    once per step.

    Args:
        supernet: Its model is trained; its weights should be in importance order.
        strategy: Chooses the subnetworks of a step.
        relation_weight: Weight of the relation loss.
        relation_source: The states whose relations are distilled.
        **kwargs: Those of `DistillationTrainer`, such as ``teacher``: the parent, or None for in-place distillation.

    Raises:
        InputError: If relations of all layers are distilled while one process drives several GPUs.
    """

    def __init__(
        self,
        *,
        supernet: Supernet,
        strategy: Strategy,
        relation_weight: float = 0.0,
        relation_source: RelationSource = "last",
        **kwargs: Any,
    ) -> None:
        super().__init__(model=supernet.model, **kwargs)
        self.supernet, self.strategy, self.relation_weight = supernet, strategy, relation_weight
        self._recorders: dict[int, HiddenStateRecorder] = {}
        if relation_weight:
            self._attach_recorders(relation_source)
        self._losses: dict[str, list[tuple[torch.Tensor, float]]] = {}

    def _attach_recorders(self, source: RelationSource) -> None:
        """Attaches recorders of hidden states to the supernet and the teacher."""
        if source != "last" and self.args.n_gpu > 1:
            raise InputError(
                f"`supernet.relations_of` must be `last` where one process drives several GPUs, but got `{source}`; "
                "start a process for each with `accelerate launch`."
            )
        models = [self.supernet.model, *([] if self.teacher is None else [self.teacher])]
        self._recorders = {id(model): HiddenStateRecorder(model, self.supernet.layout, source) for model in models}

    def passes(self, step: int) -> list[TrainingPass]:
        """Returns the passes of one step."""
        progress = step / max(self.state.max_steps, step + 1)
        return self.strategy.passes(progress, Random(f"{self.args.seed}/{step}"))

    def steps_within(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> int:
        """How many optimizer steps take so long; their losses are not logged."""
        steps = super().steps_within(seconds, clock)
        self._losses = {}
        return steps

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Runs a forward and a backward pass for each subnetwork and accumulates gradients; returns the mean loss."""
        model.train()
        model = model.module if isinstance(model, DistributedDataParallel) else model
        inputs, rows = self.pop_row_index(self._prepare_inputs(inputs))
        passes = self.passes(self.state.global_step)
        share = self.share_of_batch(inputs, num_items_in_batch)
        teacher_outputs = self._teacher_forward(model, inputs, rows, passes)
        total = torch.zeros((), device=self.args.device)
        for training_pass in passes:
            teacher = self._teacher_of(model, inputs, training_pass.subnet, teacher_outputs)
            self.supernet.activate(training_pass.subnet)
            with self.compute_loss_context_manager():
                own = of_input_size(inputs, training_pass.subnet.input_size)
                outputs, outputs_and_states = self._forward(model, own, training_pass.subnet)
                losses = [outputs.loss.mean()] if training_pass.uses_labels else []  # one loss per DataParallel device
                if teacher is not None:
                    losses.append(self._divergence(outputs_and_states, teacher, inputs, training_pass.subnet))
                loss = torch.stack(losses).sum()
            teacher_outputs = teacher_outputs or _detach(outputs_and_states)
            part = loss * share / len(passes)
            self.accelerator.backward(part)
            self._losses.setdefault(f"loss_{training_pass.role}", []).append((loss.detach(), share))
            total += part.detach()
        self.supernet.activate(self.supernet.parent)
        self._average_gradients()
        return total

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs the mean loss, and the mean loss of each role."""
        if "loss" in logs:
            logs |= {role: _weighted_mean(losses) for role, losses in sorted(self._losses.items())}
            self._losses = {}
        super().log(logs, *args, **kwargs)

    def _forward(self, model: Any, inputs: dict[str, Any], subnet: SubnetConfig) -> tuple[Any, DistillationOutputs]:
        """Runs a model of which ``subnet`` is active; returns all its outputs, and those that are distilled."""
        is_teacher = model is self.teacher
        inputs = {name: value for name, value in inputs.items() if name != OTHER_SIZES}
        batch = model_inputs(inputs) if is_teacher else inputs
        run = partial(self.task.forward, model, batch)
        if not self.relation_weight:
            outputs = run()
            return outputs, (self.logits_and_labels(outputs, inputs), {})
        recorder = self._recorders[id(self.teacher if is_teacher else self.supernet.model)]
        outputs, states = recorder.run(run, {}, subnet)
        return outputs, (self.logits_and_labels(outputs, inputs), states)

    def _teacher_forward(
        self, model: Any, inputs: dict[str, Any], rows: torch.Tensor, passes: Sequence[TrainingPass]
    ) -> DistillationOutputs | None:
        """Returns the teacher's outputs; None if the largest subnetwork, the first pass, will be the teacher."""
        parent = self.supernet.parent
        if self.teacher is None:
            if passes[0].role == "largest":
                return None
            self.supernet.activate(parent)
            with torch.no_grad():
                return _detach(self._forward(model, inputs, parent)[1])
        if not self.relation_weight:
            return self.teacher_outputs(inputs, rows), {}
        with torch.no_grad():
            return self._forward(self.teacher, inputs, parent)[1]

    def _teacher_of(
        self, model: Any, inputs: dict[str, Any], subnet: SubnetConfig, outputs: DistillationOutputs | None
    ) -> DistillationOutputs | None:
        """Returns the teacher's outputs that those of a subnetwork are compared with: of tokens, on the same ones."""
        if outputs is None or not (subnet.changes("vocabulary") and self.task.labels_tokens):
            return outputs
        if self.teacher is None:
            self.supernet.activate(self.supernet.parent)
        return self.teacher_on_pieces(inputs, subnet.vocabulary, self.teacher or model), {}

    def _divergence(
        self, student: DistillationOutputs, teacher: DistillationOutputs, inputs: dict[str, Any], subnet: SubnetConfig
    ) -> torch.Tensor:
        loss = self.divergence(student[0], teacher[0])
        if not self.relation_weight or subnet.input_size != FULL:  # other tokens have no relations in common
            return loss
        return loss + self.relation_weight * relation_loss(student[1], teacher[1], inputs, self.supernet.layout)

    def _average_gradients(self) -> None:
        """Averages gradients over processes after the last backward pass of a step.

        `DistributedDataParallel` would do it in every backward pass, and for all weights each time.
        """
        if not (distributed.is_initialized() and self.accelerator.sync_gradients):
            return
        for parameter in self.supernet.model.parameters():
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= distributed.get_world_size()


def _weighted_mean(losses: Sequence[tuple[torch.Tensor, float]]) -> float:
    """Returns the mean of losses by their weights, the shares of accumulated batches."""
    return float(sum(loss * weight for loss, weight in losses)) / max(sum(weight for _, weight in losses), 1e-12)


def _detach(outputs: DistillationOutputs) -> DistillationOutputs:
    """Detaches outputs from the graph."""
    logits_and_labels, states = outputs
    return [(logits.detach(), labels) for logits, labels in logits_and_labels], detach_states(states)

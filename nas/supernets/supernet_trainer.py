"""SupernetTrainer: trains all subnetworks of a space together, on labels and on a teacher's outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from nas.supernets.distillation_trainer import DistillationOutputs, DistillationTrainer, TeacherOutputs, of_input_size
from nas.supernets.strategies import Strategy, TrainingPass
from nas.supernets.supernet import Supernet
from search_spaces import SubnetConfig
from search_spaces.dimension import FULL


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
        **kwargs: Those of `DistillationTrainer`, such as ``teacher``: the parent, or None for in-place distillation.
    """

    def __init__(self, *, supernet: Supernet, strategy: Strategy, **kwargs: Any) -> None:
        super().__init__(model=supernet.model, **kwargs)
        self.supernet, self.strategy = supernet, strategy
        self._losses: dict[str, list[tuple[torch.Tensor, float]]] = {}

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
                outputs, student = self.forward(model, own)
                losses = [outputs.loss.mean()] if training_pass.uses_labels else []  # one loss per DataParallel device
                if teacher is not None:
                    losses.append(self.distillation_loss(student, teacher, training_pass.subnet.input_size))
                loss = torch.stack(losses).sum()
            teacher_outputs = teacher_outputs or _detach(student)
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

    def _teacher_forward(
        self, model: Any, inputs: dict[str, Any], rows: torch.Tensor, passes: Sequence[TrainingPass]
    ) -> TeacherOutputs | None:
        """Returns the teacher's outputs; None if the largest subnetwork, the first pass, will be the teacher."""
        if self.teacher is not None:
            return self.teacher_outputs(inputs, rows)
        if passes[0].role == "largest":
            return None
        self.supernet.activate(self.supernet.parent)
        with torch.no_grad():
            return _detach(self.forward(model, of_input_size(inputs, FULL))[1])

    def _teacher_of(
        self, model: Any, inputs: dict[str, Any], subnet: SubnetConfig, outputs: TeacherOutputs | None
    ) -> TeacherOutputs | None:
        """Returns the teacher's outputs that those of a subnetwork are compared with: of tokens, on the same ones."""
        if outputs is None or not (subnet.changes("vocabulary") and self.task.labels_tokens):
            return outputs
        if self.teacher is None:
            self.supernet.activate(self.supernet.parent)
        return self.teacher_on_pieces(inputs, subnet.vocabulary, self.teacher or model)

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
    """Detaches the logits from the graph; hidden states are compared with those of a fixed teacher only."""
    return [(logits.detach(), labels) for logits, labels in outputs[0]], {}

"""SupernetTrainer: all subnetworks of a space learn together, from labels and from a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from nas.supernets.relation_distillation import Related, StateRecorder, States, detached, relation_loss
from nas.supernets.strategies import Lesson, Strategy
from nas.supernets.supernet import Supernet
from nas.supernets.training import DistillationTrainer
from nas.tasks.batches import model_inputs
from nas.tasks.losses import Scored
from search_spaces import InputError, SubnetConfig

Said = tuple[list[Scored], States]
"""What counts of a model's outputs, and the states whose relations are learned from."""


class SupernetTrainer(DistillationTrainer):
    """One or more subnetworks learn in every step, then one update.

    Every lesson learns from the teacher: the fixed fine-tuned parent, as in DynaBERT (arXiv 2004.04037), or in place
    from the largest subnetwork of the same step, as in universally slimmable networks (arXiv 1903.05134). Which
    subnetworks are sampled depends on the seed and the step alone, so an interrupted training continues as if it had
    not been. Several processes sample the same ones, each learns on batches of its own, and their gradients are
    averaged once a step.

    Args:
        supernet: Its model is trained; its weights should be in importance order.
        strategy: Which subnetworks learn in a step.
        relations: Weight of the loss on how tokens relate.
        relations_of: In which states of a subnetwork they relate as in the teacher's.
        **kwargs: Those of `DistillationTrainer`, such as ``teacher``: the parent, or None for in-place distillation.

    Raises:
        InputError: If relations are of all layers while one process drives several GPUs.
    """

    def __init__(
        self,
        *,
        supernet: Supernet,
        strategy: Strategy,
        relations: float = 0.0,
        relations_of: Related = "last",
        **kwargs: Any,
    ) -> None:
        super().__init__(model=supernet.model, **kwargs)
        self.supernet, self.strategy, self.relations = supernet, strategy, relations
        self._recorders: dict[int, StateRecorder] = {}
        if relations:
            self._record(relations_of)
        self._losses: dict[str, list[torch.Tensor]] = {}

    def _record(self, of: Related) -> None:
        """Makes the states of the subnetworks and of the teacher known."""
        if of != "last" and self.args.n_gpu > 1:
            raise InputError(
                f"`supernet.relations_of` must be `last` where one process drives several GPUs, but got `{of}`; start "
                "a process for each with `accelerate launch`."
            )
        models = [self.supernet.model, *([] if self.teacher is None else [self.teacher])]
        self._recorders = {id(model): StateRecorder(model, self.supernet.layout, of) for model in models}

    def lessons(self, step: int) -> list[Lesson]:
        """What is learned in one step."""
        progress = step / max(self.state.max_steps, step + 1)
        return self.strategy.lessons(progress, Random(f"{self.args.seed}/{step}"))

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One forward and backward pass a lesson; gradients add up. Returns the mean loss."""
        model.train()
        model = model.module if isinstance(model, DistributedDataParallel) else model
        inputs, rows = self.split(self._prepare_inputs(inputs))
        lessons = self.lessons(self.state.global_step)
        taught = self._from_teacher(model, inputs, rows, lessons)
        total = torch.zeros((), device=self.args.device)
        for lesson in lessons:
            self.supernet.activate(lesson.subnet)
            with self.compute_loss_context_manager():
                outputs, said = self._called(model, inputs, lesson.subnet)
                parts = [outputs.loss.mean()] if lesson.labels else []  # DataParallel gives one loss a device
                parts += [] if taught is None else [self._divergence(said, taught, inputs)]
                loss = torch.stack(parts).sum()
            taught = taught or _fixed(said)
            self.accelerator.backward(loss / (len(lessons) * self.args.gradient_accumulation_steps))
            self._losses.setdefault(f"loss_{lesson.role}", []).append(loss.detach())
            total += loss.detach() / len(lessons)
        self.supernet.activate(self.supernet.parent)
        self._average_gradients()
        return total

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs the mean loss of each role beside that of all."""
        if "loss" in logs:
            logs |= {role: float(torch.stack(losses).mean()) for role, losses in sorted(self._losses.items())}
            self._losses = {}
        super().log(logs, *args, **kwargs)

    def _called(self, model: Any, inputs: dict[str, Any], subnet: SubnetConfig) -> tuple[Any, Said]:
        """The outputs of a model of which ``subnet`` is active, and what it says."""
        taught = model is self.teacher
        given = model_inputs(inputs) if taught else inputs
        if not self.relations:
            outputs = model(**given)
            return outputs, (self.said(outputs, inputs), {})
        recorder = self._recorders[id(self.teacher if taught else self.supernet.model)]
        outputs, states = recorder.run(model, given, subnet)
        return outputs, (self.said(outputs, inputs), states)

    def _from_teacher(
        self, model: Any, inputs: dict[str, Any], rows: torch.Tensor, lessons: Sequence[Lesson]
    ) -> Said | None:
        """What the teacher says; None where the first lesson, the largest subnetwork, will be the teacher."""
        whole = self.supernet.parent
        if self.teacher is None:
            if lessons[0].role == "largest":
                return None
            self.supernet.activate(whole)
            with torch.no_grad():
                return _fixed(self._called(model, inputs, whole)[1])
        if not self.relations:
            return self.taught(inputs, rows), {}
        with torch.no_grad():
            return self._called(self.teacher, inputs, whole)[1]

    def _divergence(self, student: Said, teacher: Said, inputs: dict[str, Any]) -> torch.Tensor:
        loss = self.divergence(student[0], teacher[0])
        if not self.relations:
            return loss
        return loss + self.relations * relation_loss(student[1], teacher[1], inputs, self.supernet.layout)

    def _average_gradients(self) -> None:
        """Takes the mean over processes, once the gradients of a step are complete.

        `DistributedDataParallel` would do so in every backward pass, and for a whole model each time.
        """
        if not (distributed.is_initialized() and self.accelerator.sync_gradients):
            return
        for parameter in self.supernet.model.parameters():
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= distributed.get_world_size()


def _fixed(said: Said) -> Said:
    """The same outside the graph."""
    scored, states = said
    return [(logits.detach(), labels) for logits, labels in scored], detached(states)

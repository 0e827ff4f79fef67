"""Training on `transformers.Trainer`: the parent, the supernet (sandwich with distillation), one subnetwork."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from nas.config import Training
from nas.supernets.supernet import Supernet
from nas.task_types import TaskType
from nas.task_types.base import model_inputs
from nas.tasks.losses import divergence
from search_spaces import SearchSpace, SubnetConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

Report = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what to show) while a training runs."""


class DistillationTrainer(Trainer):
    """Trains a model on labels and on a fixed teacher's outputs.

    The loss is the model's own on the labels, plus the divergence from the teacher (`nas.tasks.losses.divergence`).

    Args:
        task: Says which outputs count and what has a label; also collates.
        teacher: Fixed model of the same task, or None to learn from labels alone.
        temperature: Softens both distributions.
    """

    def __init__(
        self, *, task: TaskType, teacher: PreTrainedModel | None, temperature: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(data_collator=task.collate, **kwargs)
        self.task = task
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False).to(self.args.device)
        self.temperature = temperature

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Labels and, where there is a teacher, its outputs; see the class."""
        outputs = model(**inputs)
        loss = outputs.loss
        if self.teacher is not None:
            loss = loss + self.divergence(outputs, self.taught(inputs), inputs)
        return (loss, outputs) if return_outputs else loss

    def taught(self, inputs: dict[str, Any]) -> Any:
        """The teacher's outputs on the same inputs, those of the decoder included."""
        assert self.teacher is not None
        with torch.no_grad():
            return self.teacher(**model_inputs(inputs))

    def divergence(self, student: Any, teacher: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """How far a student's outputs are from the teacher's, on what has a label."""
        ours, theirs = self.task.scored(student, inputs), self.task.scored(teacher, inputs)
        return divergence(ours, theirs, self.task.activation, self.temperature)


class SupernetTrainer(DistillationTrainer):
    """Sandwich training: every step, the largest, the smallest and some sampled subnetworks, then one update.

    The sandwich rule is from Yu & Huang 2019 (arXiv 1903.05134); the teacher is the fixed fine-tuned parent, as in
    DynaBERT (arXiv 2004.04037). The largest also learns from the labels. Which subnetworks are sampled depends on
    the seed and the step alone, so that an interrupted training continues as if it had not been.

    Args:
        supernet: Its model is trained; its weights should be in importance order.
        space: Where subnetworks are sampled.
        sampled_subnets: How many of them a step, beside the largest and the smallest.
    """

    def __init__(self, *, supernet: Supernet, space: SearchSpace, sampled_subnets: int, **kwargs: Any) -> None:
        super().__init__(model=supernet.model, **kwargs)
        self.supernet = supernet
        self.space = space
        self.sampled_subnets = sampled_subnets

    def subnets_of_step(self, step: int) -> list[SubnetConfig]:
        """The subnetworks that learn in one step, the largest first."""
        rng = Random(f"{self.args.seed}/{step}")
        return [
            self.space.largest,
            self.space.smallest,
            *(self.space.sample_mixed(rng) for _ in range(self.sampled_subnets)),
        ]

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One forward and backward pass per subnetwork; gradients add up. Returns the mean loss."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        taught = self.taught(inputs)
        subnets = self.subnets_of_step(self.state.global_step)
        total = torch.zeros((), device=self.args.device)
        for subnet in subnets:
            self.supernet.activate(subnet)
            with self.compute_loss_context_manager():
                outputs = model(**inputs)
                loss = self.divergence(outputs, taught, inputs)
                if subnet is subnets[0]:
                    loss = loss + outputs.loss.mean()  # DataParallel gives one loss a device
            self.accelerator.backward(loss / (len(subnets) * self.args.gradient_accumulation_steps))
            total += loss.detach() / len(subnets)
        self.supernet.activate(self.supernet.parent)
        return total


def training_arguments(settings: Training, folder: Path, seed: int, by_length: bool) -> TrainingArguments:
    """Arguments of every training here: linear decay after a short warm-up, ten checkpoints, the last two kept.

    Texts are batched with others of their length, so that little is spent on padding.
    """
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.num_train_epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        weight_decay=settings.weight_decay,
        warmup_steps=0.06,
        save_strategy="steps",
        save_steps=0.1,
        save_total_limit=2,
        logging_steps=10,
        seed=seed,
        data_seed=seed,
        report_to="none",
        disable_tqdm=True,
        train_sampling_strategy="group_by_length" if by_length else "random",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def training_device() -> str:
    """Where models are trained and the supernet is scored; latency is measured on the workload's own device."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def train(trainer: Trainer, report: Report) -> list[dict[str, float]]:
    """Runs a training from its last complete checkpoint, if there is one.

    Returns:
        The logged losses: one mapping a logging step.
    """
    trainer.remove_callback(_printer())
    trainer.add_callback(_Reporter(report))
    checkpoint = last_complete_checkpoint(Path(trainer.args.output_dir))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end.

    The Trainer writes ``trainer_state.json`` last; a process killed before leaves a folder without a readable one.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return next((path for path in reversed(found) if _is_complete(path)), None)


def _is_complete(checkpoint: Path) -> bool:
    from safetensors import safe_open

    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        if not all(zipfile.is_zipfile(file) for file in checkpoint.glob("*.pt")):
            return False
        with safe_open(checkpoint / "model.safetensors", "pt") as file:
            return len(file.keys()) > 0
    except Exception:
        return False


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


class _Reporter(TrainerCallback):
    """Hands the Trainer's progress to our own display."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        losses = [entry["loss"] for entry in state.log_history[-3:] if "loss" in entry]
        self.report(state.global_step, state.max_steps, f"loss {losses[-1]:.3f}" if losses else "")


def plain_trainer(
    model: PreTrainedModel,
    settings: Training,
    folder: Path,
    dataset: Dataset,
    task: TaskType,
    seed: int,
    teacher: PreTrainedModel | None = None,
) -> DistillationTrainer:
    """A trainer for one model: the parent on labels, or an exported subnetwork with its parent as the teacher."""
    return DistillationTrainer(
        model=model,
        task=task,
        teacher=teacher,
        args=training_arguments(settings, folder, seed, by_length="input_ids" in dataset.column_names),
        train_dataset=dataset,
    )

"""Trainings with `transformers.Trainer`: their arguments, checkpoints from which they resume, and progress."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainingArguments

from nas.recipe.schema import Training
from nas.runs import processes
from nas.runs.files import read_json, write_json
from nas.runs.progress import ProgressCallback
from nas.supernets.device import training_device
from nas.supernets.distillation_trainer import DistillationTrainer
from nas.supernets.hidden_states import StateMatching
from nas.supernets.trackers import set_log_folder
from nas.tasks.context import OtherSizes
from nas.tasks.kept_outputs import KeptOutputs
from nas.tasks.types import TaskType
from search_spaces.dimension import FULL

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


def training_arguments(settings: Training, folder: Path, seed: int, by_length: bool) -> TrainingArguments:
    """Returns the arguments of all trainings: linear decay after a short warm-up, ten checkpoints, the last two kept.

    With ``by_length``, batches hold texts of similar length, which saves padding.
    """
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.num_train_epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        weight_decay=settings.weight_decay,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        activation_checkpointing=settings.activation_checkpointing,
        bf16=settings.bf16,
        use_cpu=training_device() == "cpu",
        warmup_steps=0.06,
        save_strategy="steps",
        save_steps=0.1,
        save_total_limit=2,
        logging_steps=10,
        logging_nan_inf_filter=False,
        seed=seed,
        data_seed=seed,
        report_to=list(settings.report_to),
        disable_tqdm=True,
        train_sampling_strategy="group_by_length" if by_length else "random",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def train(
    trainer: DistillationTrainer, report: ProgressCallback, logs: Path, minutes: float | None = None
) -> list[dict[str, float]]:
    """Runs a training; resumes from its last complete checkpoint, if there is one.

    Args:
        trainer: The trainer with its data and arguments.
        report: Called with the progress.
        logs: Folder in which TensorBoard and MLflow write, if the recipe names them.
        minutes: In place of the epochs of its arguments: as many steps as take about so long. The number is stored
            beside the checkpoints, so that a resumed training has the same schedule.

    Returns:
        The logged losses: one mapping per logging step; then ``train_runtime``, its seconds since it last resumed.

    Raises:
        InputError: If a loss or a trained weight is not finite.
    """
    trainer.remove_callback(_printer_callback())
    trainer.add_callback(_ProgressReporter(report))
    set_log_folder(trainer, logs)
    if minutes is not None:
        trainer.args.max_steps = _stored_steps(trainer, minutes)
    checkpoint = last_complete_checkpoint(Path(trainer.args.output_dir))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.require_finite()
    if trainer.kept is not None:
        trainer.kept.save()
    return [entry for entry in trainer.state.log_history if "loss" in entry or "train_runtime" in entry]


def _stored_steps(trainer: DistillationTrainer, minutes: float) -> int:
    """The number of steps that fit into a time, as found when the training first began."""
    file = Path(trainer.args.output_dir, "steps.json")
    if not file.exists():
        steps = trainer.steps_within(60 * minutes)
        if trainer.kept is not None:
            trainer.kept.save()
        if processes.is_main():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, steps)
        processes.barrier()
    return int(read_json(file, parse=int))


def last_complete_checkpoint(folder: Path) -> Path | None:
    """Returns the newest complete checkpoint.

    The Trainer writes ``trainer_state.json`` last, so a checkpoint without a readable one is incomplete.
    """
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return next((path for path in reversed(checkpoints) if _is_complete(path)), None)


def _is_complete(checkpoint: Path) -> bool:
    from safetensors import safe_open

    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        if not all(zipfile.is_zipfile(file) for file in checkpoint.glob("*.pt")):
            return False
        (weights,) = checkpoint.glob("*model.safetensors")  # of adapters: adapter_model.safetensors
        with safe_open(weights, "pt") as file:
            return len(file.keys()) > 0
    except Exception:
        return False


def _printer_callback() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


class _ProgressReporter(TrainerCallback):
    """Forwards the progress of the Trainer to a callback."""

    def __init__(self, report: ProgressCallback) -> None:
        self.report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logged: dict[str, float] = next((e for e in reversed(state.log_history[-3:]) if "loss" in e), {})
        shown = [f"{name.replace('_', ' ')} {value:.3f}" for name, value in logged.items() if name.startswith("loss")]
        self.report(state.global_step, state.max_steps, " · ".join(shown))


def model_trainer(
    model: PreTrainedModel,
    settings: Training,
    folder: Path,
    dataset: Dataset,
    task: TaskType,
    seed: int,
    teacher: PreTrainedModel | None = None,
    temperature: float = 1.0,
    kept: KeptOutputs | None = None,
    other_sizes: OtherSizes | None = None,
    input_size: str = FULL,
    states: StateMatching | None = None,
    layers: Sequence[int] | None = None,
) -> DistillationTrainer:
    """Returns a trainer for one model: the parent on labels, or an exported subnetwork with its parent as teacher."""
    return DistillationTrainer(
        model=model,
        task=task,
        teacher=teacher,
        temperature=temperature,
        args=training_arguments(settings, folder, seed, by_length="input_ids" in dataset.column_names),
        train_dataset=dataset,
        kept=kept,
        other_sizes=other_sizes,
        input_size=input_size,
        states=states,
        layers=layers,
    )

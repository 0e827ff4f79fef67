"""A `transformers.Trainer` that distills one model from labels and a teacher."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import Trainer

from nas.supernets.checkpoint import load_checkpoint
from nas.supernets.hidden_states import HiddenStateRecorder, HiddenStates, StateMatching, hidden_state_loss
from nas.tasks.batches import ROW_INDEX, count_labels, model_inputs
from nas.tasks.context import OtherSizes
from nas.tasks.kept_outputs import STATE_DTYPE, KeptOutputs
from nas.tasks.losses import LogitsAndLabels, PredictionsAndLabels
from nas.tasks.top_classes import TopClasses
from nas.tasks.types import TaskType
from search_spaces import InputError
from search_spaces.dimension import FULL

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

HIGH_RATE = 1e-2
"""Learning rates above are too high for any transformer."""
TIMED_STEPS = 6
"""Steps from whose times a number of steps is found."""
TEACHER_OUTPUTS = "teacher_outputs"
"""Folder beside the checkpoints with the teacher's outputs so far."""
DistillationOutputs = tuple[Sequence[LogitsAndLabels], HiddenStates]
"""The logits that are scored with their labels, and the hidden states that are compared."""
TeacherOutputs = tuple[Sequence[PredictionsAndLabels], HiddenStates]
"""The same of a teacher, of whose predictions the likeliest classes may stand for all."""
OTHER_SIZES = "other_sizes"
"""Entry of a batch: number of pieces of a vocabulary, or of pixels of an image -> the same examples as such inputs."""
TOKEN_IDS = ("input_ids", "decoder_input_ids")
"""Entries of a batch with ids of tokens that a model reads."""


def _collate_with_row_index(task: TaskType, other_sizes: OtherSizes, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Collates a batch, with the indices of its rows if they have any, and the same rows as inputs of other sizes.

    A task that cuts texts in windows may have other numbers of rows in them; rows of the same texts are then near.
    """
    batch = task.collate([{n: v for n, v in row.items() if n != ROW_INDEX} for row in rows])
    if ROW_INDEX not in rows[0]:
        return dict(batch)
    index = [row[ROW_INDEX] for row in rows]
    others = {size: dict(each.task.collate(each.rows(index))) for size, each in other_sizes.items()}
    return {**batch, ROW_INDEX: torch.tensor(index), **({OTHER_SIZES: others} if others else {})}


class DistillationTrainer(Trainer):
    """Trains a model on labels and on a fixed teacher's outputs.

    The loss is that of the task on the labels plus the divergence from the teacher
    (`nas.tasks.losses.divergence`). A batch that is split for gradient accumulation has the loss, and so the gradient,
    of the whole: each part counts by its share of the labels.

    Args:
        task: Collates batches and selects the logits that are scored.
        teacher: Fixed model of the same task; None to train on labels only.
        temperature: Temperature of both distributions.
        train_dataset: Training examples.
        kept: Keeps the teacher's outputs on them, if they are one vector per example, or the likeliest next tokens of
            blocks; trainings on the same examples may share it. Default: beside the checkpoints.
        other_sizes: The same examples as inputs of other sizes that trained models have.
        input_size: The size of the inputs of the model; a teacher always has the full one, and reads the pieces of a
            smaller vocabulary where outputs belong to tokens.
        states: What hidden states should be; the teacher has the channels in the order of the model. With it, a
            process trains on one device.
        layers: The parent's layers that the model has; default: all.
    """

    def __init__(
        self,
        *,
        task: TaskType,
        teacher: PreTrainedModel | None,
        temperature: float = 1.0,
        train_dataset: Dataset | None = None,
        kept: KeptOutputs | None = None,
        other_sizes: OtherSizes | None = None,
        input_size: str = FULL,
        states: StateMatching | None = None,
        layers: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        other_sizes = other_sizes or {}
        if train_dataset is not None and (teacher is not None or other_sizes):
            train_dataset = train_dataset.add_column(ROW_INDEX, list(range(len(train_dataset))))
        collate = partial(_collate_with_row_index, task, other_sizes)
        super().__init__(data_collator=collate, train_dataset=train_dataset, **kwargs)
        self.other_sizes, self.input_size = other_sizes, input_size
        self.loss_is_scaled_for_ga = True  # by `share_of_batch`
        self.task = task
        self.kept = kept
        if kept is None and train_dataset is not None:
            self.kept = KeptOutputs(Path(self.args.output_dir, TEACHER_OUTPUTS), len(train_dataset))
        if teacher is None or (task.labels_tokens and not task.reads_blocks):
            self.kept = None
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False).to(self.args.device)
        self.temperature = temperature
        self.states = None if teacher is None else states
        if states is not None and self.teacher is not None:
            self.args._n_gpu = min(self.args.n_gpu, 1)  # hooks in copies of a model on several devices would mix
            self._of_student = HiddenStateRecorder(cast("PreTrainedModel", self.model), states.layout, layers)
            self._of_teacher = HiddenStateRecorder(self.teacher, states.layout, recorded=states.targets)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Computes the loss on the labels plus, with a teacher, the divergence from its outputs."""
        inputs, rows = self.pop_row_index(inputs)
        own = of_input_size(inputs, self.input_size)
        outputs, student = self.forward(model, own)
        loss = outputs.loss
        if self.teacher is not None:
            is_piecewise = self.input_size != FULL and self.task.labels_tokens
            teacher = (
                self.teacher_on_pieces(inputs, self.input_size, self.teacher)
                if is_piecewise
                else self.teacher_outputs(inputs, rows)
            )
            loss = loss + self.distillation_loss(student, teacher, self.input_size)
        loss = loss * self.share_of_batch(inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def share_of_batch(self, inputs: Mapping[str, Any], total: Any) -> float:
        """Returns the share of the labels of an accumulated batch, ``total``, that one of its parts has."""
        return 1.0 if total is None else self._count_labels(inputs) / max(float(total), 1.0)

    def _count_labels(self, inputs: Mapping[str, Any]) -> int:
        return count_labels(inputs, shifted=is_causal(self.accelerator.unwrap_model(self.model)))

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        """Returns the number of labels in the parts of an accumulated batch, in this process."""
        return sum(self._count_labels(part) for part in batch_samples)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if self.kept is not None:
            self.kept.save()
        super()._save_checkpoint(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_checkpoint(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_best_model()
        load_checkpoint(self.model, Path(self.state.best_model_checkpoint))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs values.

        Raises:
            InputError: If the loss is NaN or infinite.
        """
        if not math.isfinite(float(logs.get("loss", 0.0))):
            raise InputError(self._diverged(f"the loss must be finite, but by step {{}} it is {float(logs['loss'])}"))
        super().log(logs, *args, **kwargs)

    def require_finite(self) -> None:
        """Raises InputError if a trained weight is NaN or infinite, as a loss may be that was not logged any more."""
        if not all(torch.isfinite(weight).all() for weight in self.accelerator.unwrap_model(self.model).parameters()):
            raise InputError(self._diverged("the weights must be finite, but by step {} some are not"))

    def _diverged(self, what: str) -> str:
        """What to say of a training that diverged: the step, the likely cause and the way out."""
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        rate, step = self.args.learning_rate, self.state.global_step
        if rate > HIGH_RATE or losses:
            before = f" after {losses[-1]:.3g}" if losses else ""
            cause = f"{before}: the learning rate of {rate:g} is likely too high; lower `learning_rate`"
            cause += " or leave out `bf16`" if self.args.bf16 else ""
        else:
            cause = (
                " from the start: check the labels of the data and the weights of the model, or lower `learning_rate`"
            )
        return f"{what.format(step)}{cause}, and give another folder with --run."

    def pop_row_index(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
        """Splits a batch into model inputs and the indices of its rows."""
        inputs = dict(inputs)
        return inputs, inputs.pop(ROW_INDEX, torch.zeros(0)).cpu()

    def logits_and_labels(self, outputs: Any, inputs: dict[str, Any]) -> list[LogitsAndLabels]:
        """Returns the logits that are scored, with their labels."""
        return self.task.logits_and_labels(outputs, inputs)

    def forward(self, model: Any, inputs: dict[str, Any]) -> tuple[Any, DistillationOutputs]:
        """Runs the trained model; returns all its outputs, and those that are distilled."""
        run = partial(self.task.forward, model, inputs)
        outputs, states = (run(), {}) if self.states is None else self._of_student.run(run, inputs)
        return outputs, (self.logits_and_labels(outputs, inputs), states)

    def teacher_outputs(self, inputs: dict[str, Any], rows: torch.Tensor) -> TeacherOutputs:
        """Returns the teacher's outputs on the same inputs: those that are kept, if all are known."""
        if (known := self._known_outputs(inputs, rows)) is not None:
            return known
        full = of_input_size(inputs, FULL)
        assert self.teacher is not None
        with torch.no_grad():
            run = partial(self.teacher, **model_inputs(full))
            outputs, states = (run(), {}) if self.states is None else self._of_teacher.run(run, full)
            logits = self.logits_and_labels(outputs, inputs)
        states = {layer: [each.to(STATE_DTYPE) for each in examples] for layer, examples in states.items()}
        found, tensors = self._top_of(logits) if self.task.reads_blocks else (logits, [each for each, _ in logits])
        if self.kept is not None and len(rows):
            self.kept.put(rows, tensors)
            if self.states is not None and self.states.kept is not None:
                self.states.kept.put(rows, states)
        return found, states

    def _top_of(
        self, logits: Sequence[LogitsAndLabels]
    ) -> tuple[Sequence[PredictionsAndLabels], Sequence[torch.Tensor]]:
        """The likeliest next tokens, with the labels and as tensors to keep."""
        ((every, labels),) = logits
        top = TopClasses.of(every, self.temperature)
        return [(top, labels)], [top.log_shares, top.classes]

    def _known_outputs(self, inputs: dict[str, Any], rows: torch.Tensor) -> TeacherOutputs | None:
        """The teacher's outputs that are kept; None if some are not."""
        outputs = self.kept.get(rows) if self.kept is not None and len(rows) else None
        states: HiddenStates | None = {}
        if self.states is not None:
            states = None if self.states.kept is None else self.states.kept.get(rows)
        if outputs is None or states is None:
            return None
        outputs = [each.to(self.args.device) for each in outputs]
        predictions = [TopClasses(*outputs)] if self.task.reads_blocks else outputs
        return [(each, inputs.get("labels", outputs[0])) for each in predictions], states

    def teacher_on_pieces(self, inputs: dict[str, Any], size: str, teacher: PreTrainedModel) -> DistillationOutputs:
        """Returns a teacher's logits on the tokens of a smaller vocabulary, under the ids that it knows them by.

        Outputs of tokens compare on the same tokens only. Of logits with an entry for each piece, those that the
        smaller vocabulary has are compared. Hidden states are not.
        """
        own, kept = of_input_size(inputs, size), self.other_sizes[size].kept
        assert kept is not None
        ids = {name: kept.to(own[name].device)[own[name]] for name in TOKEN_IDS if name in own}
        with torch.no_grad():
            found = self.logits_and_labels(teacher(**{**model_inputs(own), **ids}), own)
        if not self.task.has_vocabulary_logits:
            return found, {}
        return [(logits[..., kept.to(logits.device)], labels) for logits, labels in found], {}

    def steps_within(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> int:
        """How many optimizer steps take so long on this machine, at least one; weights stay as they are.

        Times steps on batches of short to long examples twice: first the teacher may run, then its outputs are kept.
        Trainings of one seed see the examples in the same order, so what is kept comes first. The timing counts.

        Args:
            seconds: The time.
            clock: Returns seconds.
        """
        start, parts = clock(), self.args.gradient_accumulation_steps
        n_kept = self._n_kept
        first_s, again_s = (parts * self._step_seconds(clock) for _ in range(2))
        left, epoch = seconds - (clock() - start), self._epoch_steps
        kept_steps = epoch * n_kept / len(cast("Dataset", self.train_dataset))
        return max(1, int(_steps_within(left, again_s, first_s, kept_steps, epoch)))

    @property
    def _n_kept(self) -> int:
        """Number of examples of which all of the teacher's outputs are kept."""
        if self.kept is None or self.states is None:
            return 0 if self.kept is None else self.kept.n_known
        return 0 if self.states.kept is None else min(self.kept.n_known, self.states.kept.n_known)

    @property
    def _epoch_steps(self) -> float:
        """Optimizer steps of an epoch."""
        rows = len(cast("Dataset", self.train_dataset))
        return rows / (self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size)

    def _step_seconds(self, clock: Callable[[], float]) -> float:
        """Mean seconds of a forward and backward pass and an optimizer step that changes nothing."""
        model, dataset = cast("PreTrainedModel", self.model), cast("Dataset", self.train_dataset)
        order = _by_length(dataset)
        size, seconds = min(self.args.per_device_train_batch_size, len(order)), list[float]()
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        optimizer = kind(model.parameters(), **{**options, "lr": 0.0}, weight_decay=0.0)
        with torch.random.fork_rng():
            for number in (TIMED_STEPS, *range(TIMED_STEPS)):  # the first, of the longest, only allocates
                first = int(min(1.0, (number + 0.5) / TIMED_STEPS) * (len(order) - size))
                begin = clock()
                batch = self.data_collator(list(dataset.select(order[first : first + size])))
                self.state.global_step = number  # a supernet samples other subnetworks in every step
                self.training_step(model, batch)
                torch.nn.utils.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
                optimizer.step()
                model.zero_grad()
                seconds.append(clock() - begin)
        return sum(seconds[1:]) / TIMED_STEPS

    def distillation_loss(
        self, student: DistillationOutputs, teacher: TeacherOutputs, input_size: str = FULL
    ) -> torch.Tensor:
        """Returns the divergence from the teacher over the scored labels, and the loss on hidden states if they match.

        Those of inputs of another size have other tokens, and are not compared.
        """
        loss = self.task.divergence(student[0], teacher[0], self.temperature)
        if self.states is None or input_size != FULL:
            return loss
        return loss + self.states.weight * hidden_state_loss(student[1], teacher[1], self.states.layout)


def _steps_within(seconds: float, step_s: float, first_s: float, kept: float, epoch: float) -> float:
    """Steps that take so long, where those between ``kept`` and ``epoch`` take ``first_s`` each, others ``step_s``."""
    before, during = kept * step_s, (epoch - kept) * first_s
    if seconds <= before:
        return seconds / step_s
    if seconds <= before + during:
        return kept + (seconds - before) / first_s
    return epoch + (seconds - before - during) / step_s


def of_input_size(inputs: dict[str, Any], size: str) -> dict[str, Any]:
    """Returns a batch as inputs of some size."""
    if size != FULL:
        return dict(inputs[OTHER_SIZES][size])
    return {name: value for name, value in inputs.items() if name != OTHER_SIZES}


def _by_length(dataset: Dataset) -> list[int]:
    """Rows of a data set, those with the fewest tokens first; in their order, if it has no texts."""
    texts = dataset["input_ids"] if "input_ids" in dataset.column_names else [()] * len(dataset)
    lengths = [len(text) for text in texts]
    return sorted(range(len(dataset)), key=lengths.__getitem__)


def is_causal(model: PreTrainedModel) -> bool:
    """Whether the model's own loss compares the output at a token with the label of the next token."""
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))

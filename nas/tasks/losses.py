"""Losses of a task: the divergence of a student from its teacher, and the loss of each example on its labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F

from nas.tasks.batches import IGNORE_INDEX
from nas.tasks.few_labels import exact, exact_dtype, few_labels
from nas.tasks.top_classes import TopClasses, divergence_from_top

Activation = Literal["softmax", "sigmoid", "identity", "embedding"]
"""How logits become a prediction: one of several classes, any number of classes, or a number; or they are a vector."""

SIMILARITY_TEMPERATURE = 0.05
"""Temperature of similarities, as sentence-transformers trains with (a scale of 20)."""

LogitsAndLabels = tuple[torch.Tensor, torch.Tensor]
"""Logits (examples, ..., classes) and labels. For softmax, labels are class ids (examples, ...), and those equal to
`IGNORE_INDEX` are not scored. Otherwise labels are numbers of the logits' shape. For embedding, both are vectors, of
one or several texts of an example (examples, ..., channels)."""
PredictionsAndLabels = tuple[torch.Tensor | TopClasses, torch.Tensor]
"""Logits of a teacher, or its likeliest classes at the temperature of a training, and labels."""


def divergence(
    student: Sequence[LogitsAndLabels],
    teacher: Sequence[PredictionsAndLabels],
    activation: Activation,
    temperature: float,
) -> torch.Tensor:
    """Returns the divergence of a student from its teacher; zero where their logits are equal.

    - softmax: KL(teacher || student) at a temperature, times its square (Hinton et al. 2015, arXiv 1503.02531), mean
      over the scored labels; with a teacher's likeliest classes, see `nas.tasks.top_classes`.
    - sigmoid: the same for each class as a binary decision, mean over examples and classes.
    - identity: the mean squared difference.
    - embedding: 1 - cosine similarity, plus the KL divergence of the similarities to the other examples of the batch
      as a softmax at `SIMILARITY_TEMPERATURE` times the temperature. A shorter vector should point where the start of
      the teacher's does, and have the similarities of the whole.

    A model with several outputs, such as the start and the end of an answer, has the mean over them.
    """
    losses = [
        _divergence_from_top(logits, expected, labels, temperature)
        if isinstance(expected, TopClasses)
        else DIVERGENCES[activation](
            _labelled(logits, labels, activation), _labelled(expected, labels, activation), temperature
        )
        for (logits, labels), (expected, _) in zip(student, teacher, strict=True)
    ]
    return torch.stack(losses).mean()


def _divergence_from_top(
    logits: torch.Tensor, teacher: TopClasses, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    scored = labels != IGNORE_INDEX
    return divergence_from_top(logits[scored], teacher[scored], temperature)


def divergence_by_example(outputs: Sequence[LogitsAndLabels], parent: TopClasses) -> torch.Tensor:
    """Returns the divergence of each example from the parent's likeliest classes, summed over its scored labels."""
    ((logits, labels),) = outputs
    found = [
        divergence_from_top(logits[row][scored], parent[row][scored], 1.0) * scored.sum()
        for row, scored in enumerate(labels != IGNORE_INDEX)
    ]
    return torch.stack(found)


def loss_by_example(outputs: Sequence[LogitsAndLabels], activation: Activation) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of each example, summed over its scored labels, and the number of these labels.

    The mean loss of a dataset is the sum of the losses over the sum of the numbers.

    Returns:
        Two tensors (examples,).
    """
    losses = [LABEL_LOSSES[activation](logits, labels) for logits, labels in outputs]
    counts = [_label_mask(labels, activation).reshape(len(labels), -1).sum(1) for _, labels in outputs]
    return torch.stack([loss.sum(1) for loss in losses]).sum(0), torch.stack(counts).sum(0)


def _labelled(logits: torch.Tensor, labels: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Returns the scored logits (labels, classes); those of classes in their own dtype."""
    return logits[_label_mask(labels, activation)] if activation == "softmax" else logits.float()


def _label_mask(labels: torch.Tensor, activation: Activation) -> torch.Tensor:
    return labels != IGNORE_INDEX if activation == "softmax" else torch.ones_like(labels, dtype=torch.bool)


def _kl_divergence(student: torch.Tensor, teacher: torch.Tensor, t: float) -> torch.Tensor:
    total: torch.Tensor = _SummedDivergence.apply(student, teacher, t)
    return total * (t * t / max(len(student), 1))


class _SummedDivergence(torch.autograd.Function):
    """KL(teacher || student) at a temperature, summed over the labels, a few of them at a time.

    A vocabulary has so many classes that the logits of a batch are as large as a small model. Of everything that is
    computed from them, only the gradient of the student's is kept.
    """

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor, t: float) -> torch.Tensor:
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else student.new_empty(0)
        total = student.new_zeros((), dtype=exact_dtype(student))
        for part in few_labels(student):
            scores, target = (F.log_softmax(exact(logits[part]) / t, -1) for logits in (student, teacher))
            total += F.kl_div(scores, target, reduction="sum", log_target=True)
            if ctx.needs_input_grad[0]:
                gradient[part] = scores.exp_().sub_(target.exp_()).div_(t)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, change: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return change.to(gradient.dtype) * gradient, None, None


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the mean loss of the next tokens; as the loss of a causal model, with memory for one gradient.

    Args:
        logits: (examples, tokens, vocabulary).
        labels: (examples, tokens), not shifted; `IGNORE_INDEX` is not scored.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).flatten()
    total: torch.Tensor = _SummedCrossEntropy.apply(logits.flatten(0, 1), targets)
    return total / (targets != IGNORE_INDEX).sum()


class _SummedCrossEntropy(torch.autograd.Function):
    """Cross entropy, summed over the labels, a few of them at a time; see `_SummedDivergence`."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else logits.new_empty(0)
        total = logits.new_zeros((), dtype=exact_dtype(logits))
        for part in few_labels(logits):
            scores, own = F.log_softmax(exact(logits[part]), -1), labels[part]
            total += F.nll_loss(scores, own, reduction="sum", ignore_index=IGNORE_INDEX)
            if ctx.needs_input_grad[0]:
                scored, numbers = own != IGNORE_INDEX, torch.arange(len(own), device=own.device)
                change = scores.exp_()
                change[numbers, own.where(scored, 0)] -= 1
                gradient[part] = change.mul_(scored[:, None])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, change: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return change.to(gradient.dtype) * gradient, None


def _binary_kl_divergence(student: torch.Tensor, teacher: torch.Tensor, t: float) -> torch.Tensor:
    probability = torch.sigmoid(teacher / t)
    cross_entropy = F.binary_cross_entropy_with_logits(student / t, probability)
    return (cross_entropy - F.binary_cross_entropy_with_logits(teacher / t, probability)) * t * t


def _mean_squared_error(student: torch.Tensor, teacher: torch.Tensor, t: float) -> torch.Tensor:
    return F.mse_loss(student, teacher)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses = [
        each
        for part in few_labels(logits)
        for each in _losses_of_labels(logits[part].flatten(0, -2), labels[part].flatten())
    ]
    return torch.cat(losses).view(len(labels), -1)


def _losses_of_labels(logits: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """Cross entropy of logits (labels, classes), a few labels at a time."""
    return [
        F.cross_entropy(exact(logits[part]), labels[part], ignore_index=IGNORE_INDEX, reduction="none")
        for part in few_labels(logits)
    ]


def _binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")


def _squared_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(logits.float(), labels.float(), reduction="none")


def cosine_similarity(vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the cosine similarity (examples,) of vectors to labels; components that they lack count as zero."""
    return F.cosine_similarity(F.pad(vectors, (0, labels.shape[1] - vectors.shape[1])), labels.float())


def _cosine_distance(vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return 1.0 - cosine_similarity(vectors.float(), labels)[:, None]


def _embedding_divergence(student: torch.Tensor, teacher: torch.Tensor, t: float) -> torch.Tensor:
    student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
    distance = _cosine_distance(student, teacher).mean()
    if len(student) < 3:  # with one other example there is nothing to choose between
        return distance
    found, target = (_neighbour_log_shares(vectors, SIMILARITY_TEMPERATURE * t) for vectors in (student, teacher))
    return distance + F.kl_div(found, target, reduction="batchmean", log_target=True)


def _neighbour_log_shares(vectors: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns the log softmax of each example's similarities to the others (examples, examples - 1)."""
    unit = F.normalize(vectors, dim=-1)
    others = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return F.log_softmax((unit @ unit.T)[others].view(len(unit), -1) / temperature, -1)


DIVERGENCES = {
    "softmax": _kl_divergence,
    "sigmoid": _binary_kl_divergence,
    "identity": _mean_squared_error,
    "embedding": _embedding_divergence,
}
LABEL_LOSSES = {
    "softmax": _cross_entropy,
    "sigmoid": _binary_cross_entropy,
    "identity": _squared_error,
    "embedding": _cosine_distance,
}

"""Losses on what a task's outputs say: the divergence from a teacher's, and the loss of each example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from nas.tasks.batches import IGNORED

Activation = Literal["softmax", "sigmoid", "identity"]
"""What makes a prediction of logits: one class of several, any number of classes, or the number itself."""

Scored = tuple[torch.Tensor, torch.Tensor]
"""Logits (examples, ..., classes) and labels. For softmax, labels are class ids (examples, ...), those that are
`IGNORED` are not scored; else they are numbers of the logits' shape."""


def divergence(
    student: Sequence[Scored], teacher: Sequence[Scored], activation: Activation, temperature: float
) -> torch.Tensor:
    """How far a student's outputs are from its teacher's, zero where they are equal.

    For softmax KL(teacher || student) at a temperature, times its square (Hinton et al. 2015, arXiv 1503.02531),
    mean over what has a label; for sigmoid the same of every class by itself, mean over examples and classes; for
    identity the squared difference. The mean over several outputs, such as the start and the end of an answer.
    """
    parts = [
        DIVERGENCES[activation](_kept(ours, labels, activation), _kept(theirs, labels, activation), temperature)
        for (ours, labels), (theirs, _) in zip(student, teacher, strict=True)
    ]
    return torch.stack(parts).mean()


def loss_by_example(scored: Sequence[Scored], activation: Activation) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each example on its labels, summed over what is scored, and how many scores that is.

    The mean of a whole set is the sum of the first over the sum of the second.

    Returns:
        Two tensors (examples,).
    """
    parts = [LABEL_LOSSES[activation](logits.float(), labels) for logits, labels in scored]
    counts = [_mask(labels, activation).reshape(len(labels), -1).sum(1) for _, labels in scored]
    return torch.stack([part.sum(1) for part in parts]).sum(0), torch.stack(counts).sum(0)


def _kept(logits: torch.Tensor, labels: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Logits (scored, classes) of what has a label."""
    return logits[_mask(labels, activation)].float() if activation == "softmax" else logits.float()


def _mask(labels: torch.Tensor, activation: Activation) -> torch.Tensor:
    return labels != IGNORED if activation == "softmax" else torch.ones_like(labels, dtype=torch.bool)


def _kl(student: torch.Tensor, teacher: torch.Tensor, t: float) -> torch.Tensor:
    scores, target = F.log_softmax(student / t, -1), F.log_softmax(teacher / t, -1)
    return F.kl_div(scores, target, reduction="sum", log_target=True) * (t * t / max(len(student), 1))


def _binary_kl(student: torch.Tensor, teacher: torch.Tensor, t: float) -> torch.Tensor:
    probability = torch.sigmoid(teacher / t)
    cross_entropy = F.binary_cross_entropy_with_logits(student / t, probability)
    return (cross_entropy - F.binary_cross_entropy_with_logits(teacher / t, probability)) * t * t


def _squared(student: torch.Tensor, teacher: torch.Tensor, t: float) -> torch.Tensor:
    return F.mse_loss(student, teacher)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(len(labels), -1)


def _binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")


def _squared_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(logits, labels.float(), reduction="none")


DIVERGENCES = {"softmax": _kl, "sigmoid": _binary_kl, "identity": _squared}
LABEL_LOSSES = {"softmax": _cross_entropy, "sigmoid": _binary_cross_entropy, "identity": _squared_error}

"""The likeliest classes of a model and all others as one: predictions over a vocabulary in little memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from nas.tasks.batches import PARENT, Batch
from nas.tasks.few_labels import exact, exact_dtype, few_labels

TOP = 128
"""Classes that are kept. Of predictions of SmolLM2-135M on WikiText-2, with all others as one class, the gradient of
the divergence is within 5 % of that with all 49,152 (64: 7 %, 256: 4 %, `experiments/bench/README.md`); renormalised
over those that are kept it is 7 % off. Why the others have to count: Anshumann et al. 2025 (arXiv 2503.16870)."""
ENTRIES = (f"{PARENT}log_shares", f"{PARENT}classes")
"""Entries of a batch with those of the parent."""


@dataclass(frozen=True)
class TopClasses:
    """Predictions: the likeliest classes, and one that stands for all others.

    Attributes:
        log_shares: Log-probabilities (..., k + 1); the last is that of all other classes, -inf where there are none.
        classes: Ids of the others (..., k).
    """

    log_shares: torch.Tensor
    classes: torch.Tensor

    def __getitem__(self, rows: torch.Tensor | int) -> TopClasses:
        """Those of some labels."""
        return TopClasses(self.log_shares[rows], self.classes[rows])

    def to(self, device: str) -> TopClasses:
        """The same on another device."""
        return TopClasses(self.log_shares.to(device), self.classes.to(device))

    def as_entries(self) -> dict[str, torch.Tensor]:
        """Entries of a batch."""
        return dict(zip(ENTRIES, (self.log_shares, self.classes), strict=True))

    @classmethod
    def in_batch(cls, batch: Batch) -> TopClasses | None:
        """Those that are entries of a batch; None if it has none."""
        return cls(*(batch[name] for name in ENTRIES)) if ENTRIES[0] in batch else None

    @classmethod
    def of(cls, logits: torch.Tensor, temperature: float = 1.0) -> TopClasses:
        """Those of logits (examples, ..., classes) at a temperature, in float32, found for a few labels at a time."""
        k, shape = min(TOP, logits.shape[-1]), logits.shape[:-1]
        labels = (each for part in few_labels(logits) for each in _rows(logits[part].flatten(0, -2)))
        found = [(_log_shares(rows, top := rows.topk(k, -1).indices, temperature)[0], top.int()) for rows in labels]
        log_shares, classes = (torch.cat(parts) for parts in zip(*found, strict=True))
        return cls(log_shares.view(*shape, k + 1), classes.view(*shape, k))


def _rows(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    for part in few_labels(logits):
        yield logits[part]


def divergence_from_top(student: torch.Tensor, teacher: TopClasses, temperature: float) -> torch.Tensor:
    """KL(teacher || student) of the likeliest classes and the rest, times the squared temperature, mean over labels.

    It is at most the divergence over all classes, and that if all are kept.

    Args:
        student: Logits (labels, classes).
        teacher: Of the same labels, at this temperature.
        temperature: Of the student too.
    """
    total: torch.Tensor = _SummedDivergence.apply(student, teacher.log_shares, teacher.classes, temperature)
    return total * (temperature**2 / max(len(student), 1))


class _SummedDivergence(torch.autograd.Function):
    """See `divergence_from_top`; summed over the labels. Only the gradient of the student's logits is kept."""

    @staticmethod
    def forward(
        ctx: Any, student: torch.Tensor, log_shares: torch.Tensor, classes: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else student.new_empty(0)
        total = student.new_zeros((), dtype=exact_dtype(student))
        for part in few_labels(student):
            target, chosen = log_shares[part].to(total.dtype), classes[part].long()
            own, all_shares = _log_shares(student[part], chosen, temperature)
            apart = torch.where(target.isneginf(), 0.0, target.exp() * (target - own))
            total += apart.sum()
            if ctx.needs_input_grad[0]:
                of_rest = 1 - torch.where(target[:, -1:].isneginf(), 0.0, (target - own)[:, -1:].exp())
                change = all_shares.exp_().mul_(of_rest)
                change.scatter_(-1, chosen, own[:, :-1].exp() - target[:, :-1].exp())
                gradient[part] = change.div_(temperature)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, change: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return change.to(gradient.dtype) * gradient, None, None, None


def _log_shares(logits: torch.Tensor, classes: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (labels, k + 1) of some classes and of all others as one, and of each (labels, classes)."""
    scores = torch.log_softmax(exact(logits) / temperature, -1)
    chosen = scores.gather(-1, classes)
    rest = scores.scatter(-1, classes, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([chosen, rest], -1), scores

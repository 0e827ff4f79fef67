"""The divergence of classes from a teacher: its value, its gradient, and what is kept for it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nas.tasks import losses
from nas.tasks.losses import divergence


@pytest.mark.parametrize("chunk", [1, 40, 10**9])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_any_number_of_labels_at_a_time_gives_the_divergence_and_its_gradient(
    chunk: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK", chunk)
    student, teacher, labels = torch.randn(3, 5, 17, requires_grad=True), torch.randn(3, 5, 17), torch.ones(3, 5)
    labels[1, 2:] = losses.IGNORE_INDEX
    found = divergence([(student, labels)], [(teacher, labels)], "softmax", temperature)
    (gradient,) = torch.autograd.grad(found, student)
    own, target = (logits[labels == 1] / temperature for logits in (student, teacher))
    loss = F.kl_div(own.log_softmax(-1), target.softmax(-1), reduction="batchmean") * temperature**2
    (expected,) = torch.autograd.grad(loss, student)
    assert torch.allclose(found, loss, atol=1e-6) and torch.allclose(gradient, expected, atol=1e-6)


def test_only_the_gradient_of_the_logits_is_kept() -> None:
    student, labels = torch.randn(4, 10, 100, requires_grad=True), torch.ones(4, 10)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        divergence([(student, labels)], [(student.detach() + 1, labels)], "softmax", 1.0)
    assert sum(size for size in kept if size >= student.numel()) == student.numel()

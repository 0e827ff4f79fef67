"""Losses over a vocabulary, a few labels at a time: their values, their gradients, and what is kept for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from toy_tasks import Make
from toys import TOYS

from nas.tasks import few_labels, losses, top_classes
from nas.tasks.losses import divergence, loss_by_example
from nas.tasks.top_classes import TopClasses


@pytest.mark.parametrize("chunk", [1, 40, 10**9])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_any_number_of_labels_at_a_time_gives_the_divergence_and_its_gradient(
    chunk: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_labels, "CHUNK", chunk)
    student, teacher, labels = torch.randn(3, 5, 17, requires_grad=True), torch.randn(3, 5, 17), torch.ones(3, 5)
    labels[1, 2:] = losses.IGNORE_INDEX
    found = divergence([(student, labels)], [(teacher, labels)], "softmax", temperature)
    (gradient,) = torch.autograd.grad(found, student)
    own, target = (logits[labels == 1] / temperature for logits in (student, teacher))
    loss = F.kl_div(own.log_softmax(-1), target.softmax(-1), reduction="batchmean") * temperature**2
    (expected,) = torch.autograd.grad(loss, student)
    assert torch.allclose(found, loss, atol=1e-6) and torch.allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 40, 10**9])
@pytest.mark.parametrize("top", [1, 4, 16, 17, 128])
def test_likeliest_classes_and_the_rest_as_one_have_their_divergence_and_its_gradient(
    top: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all classes it is the whole one; a reference merges the others, at another temperature than 1."""
    monkeypatch.setattr(few_labels, "CHUNK", chunk)
    monkeypatch.setattr(top_classes, "TOP", top)
    student, teacher, labels = torch.randn(3, 5, 17, requires_grad=True), 3 * torch.randn(3, 5, 17), torch.ones(3, 5)
    labels[1, 2:] = losses.IGNORE_INDEX
    found = divergence([(student, labels)], [(TopClasses.of(teacher, 2.5), labels)], "softmax", 2.5)
    (gradient,) = torch.autograd.grad(found, student)
    own, target = ((logits[labels == 1] / 2.5).softmax(-1) for logits in (student, teacher))
    order = target.argsort(-1, descending=True)
    own, target = (each.gather(-1, order) for each in (own, target))
    own, target = (torch.cat([each[:, :top], each[:, top:].sum(-1, keepdim=True)], -1) for each in (own, target))
    loss = (torch.special.xlogy(target, target) - torch.special.xlogy(target, own)).sum(-1).mean() * 2.5**2
    (expected,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close((found, gradient), (loss.detach(), expected), atol=1e-6, rtol=1e-4)
    if top >= 17:
        whole = divergence([(student, labels)], [(teacher, labels)], "softmax", 2.5)
        torch.testing.assert_close((found, gradient), (whole, *torch.autograd.grad(whole, student)))


@pytest.mark.parametrize("of", [lambda logits: logits, TopClasses.of])
def test_only_the_gradient_of_the_logits_is_kept(of: Callable[[torch.Tensor], torch.Tensor | TopClasses]) -> None:
    student, labels = torch.randn(4, 10, 500, requires_grad=True), torch.ones(4, 10)
    teacher, kept = of(student.detach() + 1), list[int]()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        divergence([(student, labels)], [(teacher, labels)], "softmax", 1.0)
    assert sum(size for size in kept if size >= student.numel()) == student.numel()


@pytest.mark.parametrize(("family", "chunk"), [("llama", 20), ("gemma2", 10**9), ("mixtral", 1)])
def test_the_loss_of_next_tokens_is_that_of_the_model_with_its_gradients(
    family: str, chunk: int, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a router is added where the config asks for it."""
    monkeypatch.setattr(few_labels, "CHUNK", chunk)
    toy, task = TOYS[family], make("next words").splits.task
    model, batch = toy.model(), toy.labelled()
    model.config.output_router_logits, task.config = True, model.config
    batch["labels"] = batch["labels"].clone()
    batch["labels"][1, 2:] = losses.IGNORE_INDEX
    found = []
    for loss in (model(**batch).loss, task.forward(model, batch).loss):
        found.append((loss, *torch.autograd.grad(loss, [*model.parameters()])))
    for own, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(own, expected)


def test_logits_of_16_bits_are_cast_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_labels, "CHUNK", 34)
    cast: list[int] = []
    exact = few_labels.exact
    monkeypatch.setattr(losses, "exact", lambda logits: cast.append(logits.numel()) or exact(logits))
    logits, labels = torch.randn(3, 5, 17).bfloat16(), torch.randint(0, 17, (3, 5))
    labels[1, 2:] = losses.IGNORE_INDEX
    loss, count = loss_by_example([(logits, labels)], "softmax")
    expected = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none").view(3, 5).sum(1)
    assert torch.allclose(loss, expected) and count.tolist() == [5, 2, 5] and max(cast) <= 34
    divergence([(logits, labels)], [(logits, labels)], "softmax", 1.0)
    losses.next_token_loss(logits, labels)
    assert max(cast) <= 34

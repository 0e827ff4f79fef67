"""What training learns from labels: scores, answers and triplets, with the losses of sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_tasks import SENTENCES, csv, encoder

from nas.recipe.schema import Recipe
from nas.supernets.distillation_trainer import DistillationTrainer
from nas.supernets.hidden_states import StateMatching
from nas.supernets.supernet import Supernet
from nas.supernets.training import training_arguments
from nas.tasks.context import TaskContext
from nas.tasks.kept_outputs import KeptStates
from nas.tasks.overview import data_lines
from nas.tasks.similarity_losses import order_loss, ranking_loss
from search_spaces import InputError

Build = Callable[[list[dict[str, Any]]], TaskContext]
PAIRS = list(zip(SENTENCES[:40], SENTENCES[40:80], strict=True))
DATA: dict[str, list[dict[str, Any]]] = {
    "scores": [{"sentence1": a, "sentence2": b, "score": k % 6} for k, (a, b) in enumerate(PAIRS)],
    "answers": [{"anchor": a, "positive": b} for a, b in PAIRS],
    "triplets": [{"anchor": a, "positive": b, "negative": PAIRS[k - 3][0]} for k, (a, b) in enumerate(PAIRS)],
    "pairs": [{"sentence1": a, "sentence2": b} for a, b in PAIRS],
}


@pytest.fixture
def build(tmp_path: Path) -> Build:
    encoder(tmp_path / "model")

    def make(train: list[dict[str, Any]]) -> TaskContext:
        sources = {"train": csv(tmp_path / "train", train), "test": csv(tmp_path / "test", DATA["scores"])}
        task = {"type": "sentence-similarity", **sources, "search_examples": 8, "max_length": 16}
        return TaskContext(Recipe.parse({"model": str(tmp_path / "model"), "task": task}))

    return make


def test_the_losses_are_those_of_sentence_transformers() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    torch.manual_seed(0)
    vectors, scores = torch.randn(7, 3, 5), torch.tensor([0.0, 1.0, 1.0, 5.0, 2.0, 0.5, 5.0])
    for texts in (2, 3):
        expected = losses.MultipleNegativesRankingLoss(None).compute_loss_from_embeddings
        parts = list(vectors[:, :texts].unbind(1))
        assert ranking_loss(vectors[:, :texts]).item() == pytest.approx(expected(parts, None).item(), rel=1e-5)
    expected = losses.CoSENTLoss(None).compute_loss_from_embeddings(list(vectors[:, :2].unbind(1)), scores)
    assert order_loss(vectors[:, :2], scores).item() == pytest.approx(expected.item(), rel=1e-5)


def test_scores_that_are_all_equal_teach_nothing() -> None:
    vectors = torch.randn(4, 2, 5, requires_grad=True)
    order_loss(vectors, torch.ones(4)).backward()
    assert vectors.grad is not None and not vectors.grad.any()


@pytest.mark.parametrize("name", DATA)
def test_training_learns_from_the_labels_that_there_are(name: str, build: Build) -> None:
    context = build(DATA[name])
    task, model = context.splits.task, context.load_model()
    batch = task.collate(list(context.splits.train.select(range(6))))
    outputs = task.forward(model.eval(), batch)
    ((vectors, _),) = task.logits_and_labels(outputs, batch)
    assert vectors.shape[:2] == (6, 3 if name == "triplets" else 2)
    expected = {"scores": lambda: order_loss(vectors, batch["scores"]), "pairs": lambda: torch.zeros(())}
    assert torch.equal(outputs.loss, expected.get(name, lambda: ranking_loss(vectors))())
    assert (outputs.loss > 0) == (name != "pairs")


def test_the_remembered_vectors_of_the_teacher_are_those_of_its_texts(build: Build, tmp_path: Path) -> None:
    context = build(DATA["triplets"])
    model = context.load_model()
    layout = Supernet(model).layout
    trainer = DistillationTrainer(
        model=model,
        states=StateMatching(1.0, layout, [layout.parent], KeptStates()),
        teacher=context.load_model(),
        task=context.splits.task,
        train_dataset=context.splits.train,
        args=training_arguments(context.recipe.supernet, tmp_path / "work", 0, by_length=True),
    )
    batch = trainer.data_collator(list(trainer.train_dataset.select([4, 0, 9])))
    inputs, rows = trainer.pop_row_index(batch)
    computed, states = trainer.teacher_outputs(inputs, torch.zeros(0))
    trainer.teacher_outputs(inputs, rows)
    trainer.teacher = None
    remembered, kept = trainer.teacher_outputs(inputs, rows)
    assert all(torch.equal(torch.cat(kept[layer]), torch.cat(each)) for layer, each in states.items())
    assert computed[0][0].shape == (3, 3, 48) and torch.allclose(remembered[0][0], computed[0][0], atol=1e-5)


def test_a_pair_without_its_score_is_named(build: Build) -> None:
    rows = [*DATA["scores"], {**DATA["scores"][0], "score": None}]
    with pytest.raises(InputError, match=r"each pair of .* must have a score, but `score` is empty in 1 rows"):
        _ = build(rows).splits


def test_lengths_are_those_of_texts_not_of_examples(build: Build) -> None:
    (line,) = [line for line in data_lines(build(DATA["triplets"])) if line.startswith("lengths")]
    longest = max(len(sentence.split()) for sentence in SENTENCES)
    assert f"to {longest} tokens" in line and "may be cut" not in line

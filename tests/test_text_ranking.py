"""Text ranking: pairs or lists of documents, their order by query, labels or the parent's scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_tasks import BAD, GOOD, SENTENCES, csv, jsonl, tokenizer
from toys import TOYS

from nas.exports.export import save_subnet
from nas.recipe.schema import Recipe
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from nas.tasks.types.text_ranking import ndcg, reciprocal_rank
from search_spaces import InputError, SubnetConfig

DOCUMENTS = [f"the film is {word}" for word in (*GOOD, *BAD)]
PAIRS = [
    {"query": query, "passage": document, "label": int(document.split()[-1] in GOOD)}
    for query in SENTENCES[:20]
    for document in DOCUMENTS
]
Build = Callable[..., TaskContext]


def cross_encoder(folder: Path, outputs: int = 1) -> Any:
    import transformers

    tokenizer(folder, pad_token="[PAD]")
    config = transformers.AutoConfig.for_model("bert", **{**TOYS["bert"].config, "num_labels": outputs})
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    model.resize_token_embeddings(len(tokenizer(folder, pad_token="[PAD]")))
    model.save_pretrained(folder)
    return model


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def make(rows: list[dict[str, Any]], write: Any = csv, outputs: int = 1, **task: Any) -> TaskContext:
        cross_encoder(tmp_path / "model", outputs)
        source = write(tmp_path / "data", rows)
        settings = {"type": "text-ranking", "train": source, "test": source, "search_examples": 6, "max_length": 24}
        return TaskContext(Recipe.parse({"model": str(tmp_path / "model"), "task": {**settings, **task}}))

    return make


def scores_of(context: TaskContext, model: Any, rows: list[dict[str, Any]], document: str) -> np.ndarray:
    tokens = context.processor(
        [r["query"] for r in rows], [r[document] for r in rows], return_tensors="pt", padding=True
    )
    with torch.inference_mode():
        return np.asarray(model(**tokens).logits[:, 0])


def test_the_order_of_each_query_is_scored(build: Build) -> None:
    from sklearn.metrics import ndcg_score

    context = build(PAIRS)
    model = context.load_model().eval()
    found = score(model, context.splits.test, ["ndcg10", "mrr10", "loss"])
    given = scores_of(context, model, PAIRS, "passage").reshape(20, -1)
    labels = np.array([row["label"] for row in PAIRS]).reshape(20, -1)
    assert found["ndcg10"].value == pytest.approx(ndcg_score(labels, given, k=10), abs=1e-6)
    first = [
        1 + int(np.flatnonzero(label[np.argsort(-s, kind="stable")])[0])
        for s, label in zip(given, labels, strict=True)
    ]
    assert found["mrr10"].value == pytest.approx(np.mean(1 / np.array(first)), abs=1e-6)
    assert len(context.splits.test) == 20 and len(context.splits.search) == 6
    assert list(context.recipe.objectives) == ["ndcg10", "latency_ms"]


def test_lists_of_documents_are_pairs(build: Build) -> None:
    pairs = score(build(PAIRS).load_model().eval(), build(PAIRS).splits.test, ["ndcg10"])["ndcg10"]
    by_query = {row["query"]: {"query": row["query"], "docs": [], "labels": []} for row in PAIRS}
    for row in PAIRS:
        by_query[row["query"]]["docs"].append(row["passage"])
        by_query[row["query"]]["labels"].append(row["label"])
    context = build(list(by_query.values()), jsonl)
    assert score(context.load_model().eval(), context.splits.test, ["ndcg10"])["ndcg10"].value == pairs.value


def test_without_labels_the_parents_scores_take_their_place(build: Build) -> None:
    context = build([{"query": row["query"], "passage": row["passage"]} for row in PAIRS])
    model = context.load_model().eval()
    assert score(model, context.splits.test, ["ndcg10"])["ndcg10"].value == pytest.approx(1.0)
    other = Supernet(context.load_model())
    other.activate(SubnetConfig.uniform((0,), num_attention_heads=1, intermediate_size=8, hidden_size=48))
    assert score(other.model.eval(), context.splits.test, ["ndcg10"])["ndcg10"].value < 1
    batch = dict(context.splits.task.collate([context.splits.train[k] for k in range(4)]))
    assert batch["labels"].isnan().all() and context.splits.task.forward(model, batch).loss.item() == 0


def test_labels_are_learned_as_probabilities_relative_to_the_highest(build: Build) -> None:
    context = build([{**row, "label": 3 * row["label"]} for row in PAIRS])
    model, task = context.load_model().eval(), context.splits.task
    batch = dict(task.collate([context.splits.train[k] for k in range(6)]))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        model(**{n: t for n, t in batch.items() if n != "labels"}).logits[:, 0], batch["labels"] / 3
    )
    assert torch.allclose(task.forward(model, batch).loss, expected)


def test_an_export_is_a_cross_encoder(build: Build, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    context = build(PAIRS)
    supernet = Supernet(context.load_model().eval())
    subnet = SubnetConfig.uniform((1, 3), num_attention_heads=4, intermediate_size=24, hidden_size=48)
    save_subnet(supernet, subnet, context, tmp_path / "small")
    supernet.activate(subnet)
    encoder = CrossEncoder(str(tmp_path / "small"), device="cpu", activation_fn=torch.nn.Identity())
    pairs = [(row["query"], row["passage"]) for row in PAIRS[:12]]
    expected = scores_of(context, supernet.model, PAIRS[:12], "passage")
    assert np.allclose(encoder.predict(pairs), expected, atol=1e-5)


def test_metrics_are_those_of_the_evaluator(build: Build, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

    context = build(PAIRS)
    supernet = Supernet(context.load_model().eval())
    save_subnet(supernet, supernet.parent, context, tmp_path / "small")
    encoder = CrossEncoder(str(tmp_path / "small"), device="cpu", activation_fn=torch.nn.Identity())
    samples = [
        {"query": query, **{
            name: [row["passage"] for row in PAIRS if row["query"] == query and bool(row["label"]) == is_relevant]
            for name, is_relevant in (("positive", True), ("negative", False))
        }}
        for query in dict.fromkeys(row["query"] for row in PAIRS)
    ]  # fmt: skip
    expected = CrossEncoderRerankingEvaluator(samples)(encoder)
    found = score(supernet.model.eval(), context.splits.test, ["ndcg10", "mrr10"])
    assert found["ndcg10"].value == pytest.approx(expected["ndcg@10"], abs=1e-6)
    assert found["mrr10"].value == pytest.approx(expected["mrr@10"], abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [{"text": "a"} for _ in rows], "queries and documents"),
        (lambda rows: [{**row, "label": -1} for row in rows], "numbers from 0"),
    ],
)
def test_bad_data_is_one_line(build: Build, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _ = build(change(PAIRS)).splits


def test_a_classifier_is_no_ranker(build: Build) -> None:
    with pytest.raises(InputError, match="one score"):
        _ = build(PAIRS, outputs=2).splits


def test_the_order_of_few_documents() -> None:
    assert ndcg(np.array([0.3]), np.array([1.0])) == 1 and ndcg(np.array([0.3]), np.array([0.0])) == 0
    assert reciprocal_rank(np.array([3.0, 2.0, 1.0]), np.array([0, 0, 1])) == pytest.approx(1 / 3)
    assert reciprocal_rank(-np.arange(12.0), np.array([0] * 11 + [1])) == 0

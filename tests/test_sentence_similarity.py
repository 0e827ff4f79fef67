"""Sentence similarity: pairs with scores, pairs without, texts alone, and a SentenceTransformer as the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from toy_tasks import SENTENCES, csv, encoder, txt

from nas.exports.card import write_card
from nas.exports.export import save_subnet
from nas.recipe.schema import Recipe
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import collect_stats, score
from nas.tasks.neighbours import cosine_similarity, partners
from nas.tasks.sentence_modules import SentenceModules
from search_spaces import InputError, SubnetConfig

PAIRS = zip(SENTENCES[:-7], SENTENCES[7:], strict=True)
ROWS = [{"sentence1": a, "sentence2": b, "score": k % 6} for k, (a, b) in enumerate(PAIRS)]
SMALL = SubnetConfig.uniform((1, 3), num_attention_heads=2, intermediate_size=24, hidden_size=48)
Build = Callable[..., TaskContext]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    encoder(tmp_path / "model")
    SentenceModules().write(tmp_path / "model", 48, 64)
    pooling = {"word_embedding_dimension": 48, "pooling_mode_cls_token": True}
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))

    def make(test: list[dict[str, Any]], **task: Any) -> TaskContext:
        train = txt(tmp_path / "train", [{"text": s} for s in SENTENCES])
        sources = {"train": train, "test": csv(tmp_path / "test", test), "search_examples": 20, "max_length": 16}
        task = {"type": "sentence-similarity", **sources, **task}
        return TaskContext(Recipe.parse({"model": str(tmp_path / "model"), "task": task}))

    return make


def model_of(context: TaskContext) -> Any:
    supernet = Supernet(context.load_model())
    supernet.activate(SMALL)
    return supernet.model.eval()


def vectors(model: Any, context: TaskContext, texts: list[str]) -> np.ndarray:
    task = context.splits.task
    tokens = task.tokenize(texts)
    batch = task.pad_inputs([{name: values[row] for name, values in tokens.items()} for row in range(len(texts))])
    with torch.no_grad():
        return np.asarray(task.embeddings(model(**batch), batch))


def test_pairs_are_ranked_against_their_scores(build: Build) -> None:
    context = build(ROWS)
    model = model_of(context)
    found = score(model, context.splits.test, ["spearman", "top10_agreement", "cosine_similarity"])
    first, second = (vectors(model, context, [row[name] for row in ROWS]) for name in ("sentence1", "sentence2"))
    expected = spearmanr(cosine_similarity(first, second), [row["score"] for row in ROWS]).statistic
    assert found["spearman"].value == pytest.approx(expected, abs=1e-4)
    assert 0 < found["top10_agreement"].value < 1 and 0 < found["cosine_similarity"].value < 1
    assert (
        list(context.recipe.objectives) == ["spearman", "latency_ms"] and context.splits.task.modules.pooling == "cls"
    )


def test_pairs_without_scores_are_ranked_against_the_parent(build: Build) -> None:
    pairs = [{name: row[name] for name in ("sentence1", "sentence2")} for row in ROWS]
    context = build(pairs)
    parent = context.load_model().eval()
    assert score(parent, context.splits.test, ["spearman"])["spearman"].value == pytest.approx(1.0, abs=1e-3)
    similarities = []
    for model in (parent, model_of(context)):
        first, second = (vectors(model, context, [row[name] for row in pairs]) for name in pairs[0])
        similarities.append(cosine_similarity(first, second))
    found = score(model_of(context), context.splits.test, ["spearman"])["spearman"].value
    assert found == pytest.approx(spearmanr(*similarities).statistic, abs=1e-3) and found < 0.99


def test_texts_alone_are_paired_at_all_distances(build: Build) -> None:
    context = build(ROWS)
    search = context.splits.search
    stats = search.task.compare_examples(collect_stats(model_of(context), search, []), [])
    assert len(stats["labels"]) == 20 and np.ptp(stats["labels"]) > 0.3 * np.ptp(1 - stats["labels"].min())
    assert score(context.load_model(), search, ["spearman"])["spearman"].value == pytest.approx(1.0, abs=1e-3)
    assert score(model_of(context), search, ["spearman"])["spearman"].value < 0.999


def test_partners_are_the_nearest_then_farther_ones() -> None:
    angles = np.cumsum(np.linspace(0.01, 0.1, 9))  # each gap is wider than the one before
    found = partners(np.stack([np.cos(angles), np.sin(angles)], 1))
    assert found[:4].tolist() == [1, 2, 4, 8]  # first, second, fourth and eighth nearest
    assert all(other != row for row, other in enumerate(found)) and len(partners(np.ones((1, 2)))) == 1


def test_triplets_and_named_columns_are_read(build: Build) -> None:
    row = {"anchor": SENTENCES[0], "positive": SENTENCES[1], "negative": SENTENCES[9]}
    context = build([row] * 3)
    assert len(context.splits.test) == 3 and len(context.splits.test.batches[0]["input_ids"]) == 9
    named = build([{"id": "x", "a": s, "b": s, "gold": 1.0} for s in SENTENCES[:3]], text=["a", "b"], label="gold")
    assert named.splits.test.batches[0]["scores"].tolist() == [1.0] * 3
    with pytest.raises(InputError, match=r"`task.text` must name the column of texts, or those of pairs or triplets"):
        _ = build([{"a": "x", "b": "y", "c": "z"}] * 3).splits
    with pytest.raises(InputError, match="has no column `gold`"):
        _ = build(ROWS, label="gold").splits
    with pytest.raises(InputError, match=r"the scores of .* must be numbers"):
        _ = build([{**row, "score": "high"} for row in ROWS]).splits


def test_an_export_is_loaded_by_sentence_transformers_with_equal_vectors(build: Build, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    context = build(ROWS)
    supernet = Supernet(context.load_model())
    save_subnet(supernet, SMALL, context, tmp_path / "small")
    supernet.activate(SMALL)
    loaded = library.SentenceTransformer(str(tmp_path / "small"), device="cpu", trust_remote_code=True)
    expected = vectors(supernet.model.eval(), context, SENTENCES[:5])
    assert np.abs(loaded.encode(SENTENCES[:5]) - expected).max() < 1e-5
    parent = vectors(context.load_model().eval(), context, SENTENCES[:5])
    assert np.abs(parent - expected).max() > 1e-3


def test_spearman_is_that_of_the_evaluator(build: Build, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    context = build(ROWS)
    save_subnet(Supernet(context.load_model()), SMALL, context, tmp_path / "small")
    loaded = library.SentenceTransformer(str(tmp_path / "small"), device="cpu", trust_remote_code=True)
    columns = [[row[name] for row in ROWS] for name in ("sentence1", "sentence2", "score")]
    expected = EmbeddingSimilarityEvaluator(*columns)(loaded)["spearman_cosine"]
    found = score(model_of(context), context.splits.test, ["spearman"])["spearman"]
    assert found.value == pytest.approx(expected, abs=1e-4) and 0 < found.standard_error < 0.3


def test_the_card_loads_it_with_sentence_transformers(tmp_path: Path) -> None:
    SentenceModules().write(tmp_path, 48, 64)
    info = {
        "name": "toy", "license": None, "base_model": None, "task": "sentence-similarity", "key": "k",
        "subnet": SMALL.to_dict(), "values": {"spearman": 0.8}, "errors": {}, "measured": True, "split": "test",
        "workload": {"sequence_length": 16}, "device": "cpu",
    }  # fmt: skip
    write_card(tmp_path, info)
    card = (tmp_path / "README.md").read_text()
    assert "library_name: sentence-transformers" in card and 'SentenceTransformer("this-folder")' in card


def test_tokens_of_an_example_stay_together_and_texts_apart(build: Build) -> None:
    row = {"anchor": SENTENCES[0], "positive": SENTENCES[15], "negative": SENTENCES[9]}
    task = build([row] * 3).splits.task
    (processed,) = task.process(task.test.select([0]), "test")
    batch = task.collate([processed])
    alone = [task.tokenize([text])["input_ids"][0] for text in row.values()]
    assert processed["lengths"] == [len(ids) for ids in alone] and len(processed["input_ids"]) == sum(map(len, alone))
    found = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert found == alone and batch["scores"].isnan().all()

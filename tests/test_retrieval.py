"""Retrieval sets: their files, their metrics as sentence-transformers computes them, and their place beside a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_tasks import SENTENCES, csv, encoder, txt

from nas.exports.export import save_subnet
from nas.recipe.schema import Recipe
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score, score_in_slices
from nas.tasks.retrieval import RETRIEVAL_METRICS, RetrievalSet, ranking_quality
from nas.tasks.sentence_modules import SETTINGS as SETTINGS_FILE
from nas.tasks.sentence_modules import SentenceModules
from predictors.measurement import onnx_export
from search_spaces import InputError, SubnetConfig

SMALL = SubnetConfig.uniform((1, 3), num_attention_heads=2, intermediate_size=24, hidden_size=48)
QUERIES = {f"q{k}": SENTENCES[k] for k in range(0, 36, 3)}
CORPUS = {f"d{k}": text for k, text in enumerate(SENTENCES) if f"q{k}" not in QUERIES}
RELEVANT = {q: [d for d in CORPUS if int(d[1:]) % 7 == int(q[1:]) % 7] for q in QUERIES}
SETTINGS = {"prompts": {"query": "plot ", "document": ""}, "default_prompt_name": None}
Write = Callable[..., str]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(qrels: str = "qrels/test.tsv", extra: str = "") -> str:
        folder = tmp_path / "set"
        (folder / qrels).parent.mkdir(parents=True, exist_ok=True)
        (folder / "queries.jsonl").write_text(lines([{"_id": q, "text": text} for q, text in QUERIES.items()]))
        (folder / "corpus.jsonl").write_text(lines([{"_id": d, "title": "", "text": t} for d, t in CORPUS.items()]))
        judged = [f"{q}\t{d}\t1\n" for q, of in RELEVANT.items() for d in of]
        (folder / qrels).write_text("query-id\tcorpus-id\tscore\n" + "".join(judged) + extra)
        return str(folder)

    return make


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., TaskContext]:
    encoder(tmp_path / "model")
    SentenceModules().write(tmp_path / "model", 48, 64)
    (tmp_path / "model" / SETTINGS_FILE).write_text(json.dumps(SETTINGS))

    def make(retrieval: str | None = None, **recipe: Any) -> TaskContext:
        train = txt(tmp_path / "train", [{"text": s} for s in SENTENCES])
        pairs = zip(SENTENCES[:-7], SENTENCES[7:], strict=True)
        test = csv(
            tmp_path / "test", [{"sentence1": a, "sentence2": b, "score": k % 6} for k, (a, b) in enumerate(pairs)]
        )
        task = {"type": "sentence-similarity", "train": train, "test": test, "retrieval": retrieval}
        objectives = {"spearman": "maximize", "ndcg10": "maximize", "latency_ms": "minimize"}
        settings = {"search_examples": 20, "max_length": 16}
        model = str(tmp_path / "model")
        return TaskContext(
            Recipe.parse({"model": model, "task": {**task, **settings}, "objectives": objectives} | recipe)
        )

    return make


@pytest.mark.parametrize("qrels", ["qrels/test.tsv", "qrels.tsv"])
def test_the_files_of_beir_are_read(qrels: str, write: Write) -> None:
    found = RetrievalSet.read(write(qrels, extra="q0\td1\t0\n"))
    assert list(found.queries) == list(QUERIES.values()) and list(found.corpus) == list(CORPUS.values())
    places = list(CORPUS)
    assert [{places[k] for k in of} for of in found.relevant] == [{*of} for of in RELEVANT.values()]


def test_titles_come_first_and_queries_without_answers_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(lines([{"_id": 1, "title": "One", "text": "is odd"}]))
    (tmp_path / "queries.csv").write_text("_id,text\na,what is odd\nb,what is even\n")
    (tmp_path / "qrels.csv").write_text("query-id,corpus-id,score\na,1,2\nb,1,0\n")
    assert RetrievalSet.read(str(tmp_path)) == RetrievalSet(["what is odd"], ["One is odd"], [frozenset({0})])


def test_what_is_missing_or_unknown_is_named(write: Write, tmp_path: Path, build: Callable[..., TaskContext]) -> None:
    with pytest.raises(InputError, match=r"`.*/qrels` must name queries and texts of .* there is no `d999`"):
        RetrievalSet.read(write(extra="q0\td999\t1\n"))
    with pytest.raises(InputError, match=r"`task.retrieval` must be a folder .* has no `corpus`"):
        RetrievalSet.read(str(tmp_path / "model"))
    with pytest.raises(InputError, match=r"`task.retrieval` is for sentence-similarity"):
        build(write(), task={"type": "text-classification", "train": "a.csv", "test": "b.csv", "retrieval": "set"})


def test_a_search_has_spearman_and_ndcg_of_two_sets(
    build: Callable[..., TaskContext], write: Write, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    context = build(write())
    supernet = Supernet(context.load_model())
    save_subnet(supernet, SMALL, context, tmp_path / "small")
    model = supernet.extract(SMALL).eval()
    found = score(model, context.splits.test, ["spearman", *RETRIEVAL_METRICS])
    evaluator = InformationRetrievalEvaluator(QUERIES, CORPUS, {q: {*of} for q, of in RELEVANT.items()})
    loaded = library.SentenceTransformer(str(tmp_path / "small"), device="cpu", trust_remote_code=True)
    expected = evaluator(loaded)
    for name in RETRIEVAL_METRICS:
        key = next(key for key in expected if f"cosine_{name.removesuffix('10')}@10" in key)
        assert found[name].value == pytest.approx(expected[key], abs=1e-6), name
        assert 0 < found[name].standard_error < 0.2
    alone = score(model, build().splits.test, ["spearman", "ndcg10"])
    assert alone["spearman"] == found["spearman"] and alone["ndcg10"] != found["ndcg10"]


def test_without_labels_the_neighbours_of_the_parent_are_relevant(build: Callable[..., TaskContext]) -> None:
    context = build()
    parent, small = context.load_model(), Supernet(context.load_model()).extract(SMALL).eval()
    names = ["top10_agreement", *RETRIEVAL_METRICS]
    assert [score(parent, context.splits.search, [name])[name].value for name in names] == pytest.approx([1.0] * 4)
    (slices,) = score_in_slices(small, context.splits.search, names, (0.5,))
    values = {name: scored.value for name, scored in slices[1].items()}
    assert values["recall10"] == pytest.approx(values["top10_agreement"]) and 0 < values["ndcg10"] < 1


def test_ranking_quality_by_hand() -> None:
    ranked = np.tile(np.arange(10), (3, 1))
    found = ranking_quality(ranked, [{0, 2}, {3}, {*range(10, 50)}])
    gain = 1 / np.log2(np.arange(2, 12))
    assert found["ndcg10"] == pytest.approx([(gain[0] + gain[2]) / (gain[0] + gain[1]), gain[3] / gain[0], 0.0])
    assert found["mrr10"] == pytest.approx([1.0, 0.25, 0.0]) and found["recall10"] == pytest.approx([1.0, 1.0, 0.0])
    assert ranking_quality(ranked[:, :1], [{0}] * 3)["ndcg10"].tolist() == [1.0] * 3, "a corpus of one text"


def test_metrics_of_retrieval_need_sentence_transformers(
    build: Callable[..., TaskContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'`ndcg10` needs sentence_transformers.*"paretoformer\[embeddings\]"'):
        _ = build().splits
    assert len(build(objectives={"spearman": "maximize", "latency_ms": "minimize"}).splits.test)

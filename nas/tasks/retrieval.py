"""Retrieval: a set of queries, texts and which of them are relevant, and how well ranked texts answer queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.tasks.data import load_source
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset

TOP = 10
RETRIEVAL_METRICS = ("ndcg10", "mrr10", "recall10")
QUERY = "query"
ID, TITLE, TEXT = ("_id", "id"), "title", "text"
QUERY_ID, TEXT_ID, GRADE = ("query-id", "query_id"), ("corpus-id", "corpus_id"), ("score", "relevance")
"""Names of columns in BEIR's files and in its data sets on the hub."""


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, and the texts among which their answers are.

    Attributes:
        queries: Those that have a relevant text.
        corpus: The texts; a title is put before its text.
        relevant: For each query, the indices of its relevant texts.
    """

    queries: Sequence[str]
    corpus: Sequence[str]
    relevant: Sequence[frozenset[int]]

    @classmethod
    def read(cls, folder: str) -> RetrievalSet:
        """Reads a folder with ``corpus``, ``queries`` and ``qrels``: each a file or a folder of files.

        A text is relevant if its score is above 0, as in sentence-transformers' `InformationRetrievalEvaluator`; texts
        that ``qrels`` does not name have the score 0, and queries without relevant texts are left out.

        Raises:
            InputError: If one is missing, lacks a column, or names what there is not.
        """
        corpus, queries = (_texts(_load(folder, name), f"{folder}/{name}") for name in ("corpus", "queries"))
        rows, source = _load(folder, "qrels"), f"{folder}/qrels"
        columns = [_column(rows, names, source) for names in (QUERY_ID, TEXT_ID)]
        grade = next((name for name in GRADE if name in rows.column_names), None)
        grades = rows[grade][:] if grade else [1] * len(rows)
        places = {text_id: index for index, text_id in enumerate(corpus)}
        relevant: dict[str, set[int]] = {}
        for query, text, score in zip(*(map(str, rows[name][:]) for name in columns), grades, strict=True):
            if query not in queries or text not in places:
                raise InputError(
                    f"`{source}` must name queries and texts of `{folder}`, but there is no "
                    f"`{text if query in queries else query}`."
                )
            if float(score) > 0:
                relevant.setdefault(query, set()).add(places[text])
        if not relevant:
            raise InputError(f"a query must have a relevant text, but in `{source}` no score is above 0.")
        return cls([queries[q] for q in relevant], list(corpus.values()), [*map(frozenset, relevant.values())])


def ranking_quality(ranked: np.ndarray, relevant: Sequence[Set[int]]) -> dict[str, np.ndarray]:
    """NDCG, reciprocal rank and recall at 10 of each query, by sentence-transformers' `InformationRetrievalEvaluator`.

    It gives means over queries, so it is asked for one query at a time.

    Args:
        ranked: Indices of the texts of each query, the best first (queries, up to 10 ranks).
        relevant: Indices of the relevant texts of each query, at least one.
    """
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator as Evaluator

    found, ranks, no_ranks = [], [TOP], list[int]()
    for texts, of in zip(ranked.tolist(), relevant, strict=True):
        wanted = {QUERY: {*map(str, of)}}
        evaluator = Evaluator({QUERY: ""}, {}, wanted, 1, ranks, ranks, no_ranks, ranks, no_ranks)
        hits = [{"corpus_id": str(text), "score": -rank} for rank, text in enumerate(texts)]
        found.append(evaluator.compute_metrics([hits]))
    names = dict(zip(RETRIEVAL_METRICS, ("ndcg@k", "mrr@k", "recall@k"), strict=True))
    return {name: np.array([float(of[theirs][TOP]) for of in found]) for name, theirs in names.items()}


def _load(folder: str, name: str) -> Dataset:
    """The rows of a part of a retrieval set; relevant ids may stand in a file for each split, of which it is test."""
    path = Path(folder, name)
    found = sorted(path.glob("test.*")) or ([path] if path.is_dir() else sorted(Path(folder).glob(f"{name}.*")))
    if not found:
        raise InputError(
            f"`task.retrieval` must be a folder with corpus, queries and qrels, such as `{name}.jsonl`, but "
            f"`{folder}` has no `{name}`."
        )
    return load_source(str(found[0]))


def _column(rows: Dataset, names: Sequence[str], source: str) -> str:
    found = next((name for name in names if name in rows.column_names), None)
    if found is None:
        raise InputError(f"`{source}` must have a column `{names[0]}`, but has {rows.column_names}.")
    return found


def _texts(rows: Dataset, source: str) -> dict[str, str]:
    """Id -> text of queries or of a corpus."""
    ids, text = _column(rows, ID, source), _column(rows, [TEXT], source)
    return {str(row[ids]): _joined(row, text) for row in rows}


def _joined(row: Mapping[str, Any], text: str) -> str:
    return " ".join(part for part in (row.get(TITLE), row[text]) if part)

"""Question answering: windows of a context, the best span, and SQuAD's comparison of answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy_tasks import Make, answer

from nas.tasks.evaluation import score


def test_a_long_context_is_read_in_windows_with_one_answer(make: Make) -> None:
    long = " ".join(["the film was bad not good"] * 4)

    def rows(sentence: str) -> dict[str, Any]:
        return {"question": "film", "context": f"{long} {sentence}", "answers": answer(f"{long} {sentence}", 3)}

    context = make("answers", rows, max_length=16)
    splits = context.splits
    assert len(splits.search) == 36 and len(splits.search.batches[0]["input_ids"]) > 36
    for example in splits.task.group_by_example(splits.task.process(splits.task.test, "toy")):
        assert len({row["example"] for row in example}) == 1 and len(example) > 2
        hits = [row for row in example if row["end_positions"]]
        assert hits and hits[-1]["context"].endswith(example[0]["answers"][0])
        for row in hits:
            (start, _), (_, end) = (row["offset_mapping"][row[k]] for k in ("start_positions", "end_positions"))
            assert row["context"][start:end] == row["answers"][0]

    class PerfectModel(torch.nn.Module):
        """Points at the answer in the one window that holds it, and in other windows with less certainty."""

        device = torch.device("cpu")

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            batch = next(
                b
                for b in splits.search.batches
                if b["input_ids"] is input_ids or torch.equal(b["input_ids"], input_ids)
            )
            shape = (*input_ids.shape, 1)
            start, end = (F.one_hot(batch[k], shape[1]).float() for k in ("start_positions", "end_positions"))
            return type("Outputs", (), {"start_logits": 9 * start, "end_logits": 9 * end})

    scores = score(PerfectModel(), splits.search, ["exact_match", "f1"])  # type: ignore[arg-type]
    assert scores["exact_match"].value == scores["f1"].value == 1.0


def test_answers_are_compared_without_case_articles_and_punctuation() -> None:
    from nas.tasks.types.question_answering import normalize_answer, word_f1

    assert normalize_answer("The  Film!") == normalize_answer("film")
    assert word_f1("a very good film", "good film") == pytest.approx(0.8)
    assert (word_f1("", ""), word_f1("film", ""), word_f1("bad", "good")) == (1.0, 0.0, 0.0)


def test_the_best_span_is_in_the_context_ordered_and_short() -> None:
    from nas.tasks.types.question_answering import best_span

    offsets = [[-1, -1], [0, 3], [4, 8], [9, 12]]
    start, end = np.array([9.0, 0.0, 1.0, 5.0]), np.array([9.0, 5.0, 1.0, 0.0])
    assert best_span(start, end, offsets) == (5.0, (0, 3))
    places = [[k, k + 1] for k in range(60)]
    far = np.zeros(60)
    far[0] = 9.0
    assert best_span(far, far[::-1], places)[1] != (0, 60)


def test_the_null_score_decides_on_unanswerable_questions(make: Make) -> None:
    def rows(sentence: str) -> dict[str, Any]:
        none = {"text": [], "answer_start": []}
        return {"question": "film", "context": sentence, "answers": none if "very" in sentence else answer(sentence)}

    context = make("answers", rows)
    assert context.splits.task.has_unanswerable
    task = context.splits.task
    unanswered = [e for e in task.group_by_example(task.process(task.test, "toy")) if not e[0]["answers"]]
    assert unanswered and all(row["start_positions"] == row["end_positions"] == 0 for e in unanswered for row in e)
    window = unanswered[0][0]
    size = len(window["input_ids"])
    first, last = np.eye(size)[0], np.eye(size)[size - 2]
    assert context.splits.task._predict_answer(9 * first[None], 9 * first[None], [window]) == ""
    assert (
        context.splits.task._predict_answer(9 * last[None], 9 * last[None], [window]) == window["context"].split()[-1]
    )

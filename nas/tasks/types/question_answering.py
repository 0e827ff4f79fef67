"""Question answering: finds the span of a context that answers a question (extractive, as in SQuAD)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.tasks import metrics
from nas.tasks.batches import Batch, Row, model_inputs
from nas.tasks.data import require_column, text_columns
from nas.tasks.metrics import Metric, object_array
from nas.tasks.rows import map_examples
from nas.tasks.types.base import TaskInputs, TextTask
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from nas.tasks.losses import LogitsAndLabels

MAX_ANSWER_TOKENS = 30
STRIDE_SHARE = 1 / 3
"""Overlap of neighbouring windows as a share of ``task.max_length``: 128 of 384 tokens for SQuAD."""


class QuestionAnswering(TextTask):
    """A context longer than ``task.max_length`` is read in overlapping windows; the best span of all windows counts.

    The first token stands for "no answer". Spans have at most 30 tokens.
    """

    reference_columns = ("offset_mapping", "context", "answers")
    metrics: Mapping[str, Metric] = {
        "f1": metrics.ratio_of_sums("overlap", "n_examples"),
        "exact_match": metrics.ratio_of_sums("exact", "n_examples"),
        "loss": metrics.ratio_of_sums("loss", "n_scored"),
    }

    label: str

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        self.columns = text_columns(train, self.task.text or ["question", "context"], self.task.train)
        if len(self.columns) != 2:
            raise InputError(f"`task.text` must name a question and a context column, but got {self.columns}.")
        self.label = self.label_column or "answers"
        self.train, self.test = (
            _with_answers(split, self.label, self.columns[1], source)
            for split, source in ((train, self.task.train), (test, self.task.test))
        )
        self.has_unanswerable = not all(self.train[self.label])
        if not self.processor.is_fast:
            raise InputError("question answering needs a fast tokenizer, which returns the offsets of tokens.")

    def input_columns(self, examples: Dataset) -> tuple[str, ...]:
        """Question and context."""
        return tuple(self.columns)

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Tokenizes question and context in windows, with the positions of the answer and the offsets of tokens."""
        text_columns(examples, self.columns, source)
        question, context = self.columns
        tokenizer, label, length = self.processor, self.label, self.task.max_length
        overlap = int(length * STRIDE_SHARE)
        _require_room(tokenizer, examples[question], length, overlap, source)

        def cut(rows: dict[str, Any], indices: list[int]) -> dict[str, Any]:
            windows = tokenizer(
                rows[question],
                rows[context],
                truncation="only_second",
                max_length=length,
                stride=overlap,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            example_of_window = windows.pop("overflow_to_sample_mapping")
            offsets = [_offsets_in_context(windows, w) for w in range(len(example_of_window))]
            spans = [_answer_tokens(offsets[w], rows[label][k]) for w, k in enumerate(example_of_window)]
            return {
                **windows,
                "offset_mapping": offsets,
                "start_positions": [start for start, _ in spans],
                "end_positions": [end for _, end in spans],
                "example": [indices[k] for k in example_of_window],
                "context": [rows[context][k] for k in example_of_window],
                "answers": [[answer["text"] for answer in rows[label][k]] for k in example_of_window],
            }

        return map_examples(examples, cut, with_indices=True)

    def group_by_example(self, rows: Iterable[Row]) -> list[list[Row]]:
        """Groups windows by question."""
        return [list(windows) for _, windows in groupby(rows, key=lambda row: row["example"])]

    def collate(self, rows: list[Row]) -> Batch:
        """Pads windows to the longest one."""
        import torch

        positions = {name: torch.tensor([row[name] for row in rows]) for name in ("start_positions", "end_positions")}
        return {**self.pad_inputs(rows), **positions}

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Returns the logits (windows, tokens) and labels of the start and of the end of the answer."""
        return [(outputs.start_logits, batch["start_positions"]), (outputs.end_logits, batch["end_positions"])]

    def example_stats(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns answers, prediction, exact match, word F1 and the loss over all windows of each question."""
        from nas.tasks.losses import loss_by_example

        outputs = self.logits_and_labels(model(**model_inputs(batch)), batch)
        losses, counts = (tensor.double().cpu().numpy() for tensor in loss_by_example(outputs, self.activation))
        start, end = (logits.float().cpu().numpy() for logits, _ in outputs)
        first = np.cumsum([0, *(len(windows) for windows in rows)])
        slices = [slice(a, b) for a, b in pairwise(first.tolist())]
        predictions = [
            self._predict_answer(start[p], end[p], windows) for p, windows in zip(slices, rows, strict=True)
        ]
        answers = [windows[0]["answers"] or [""] for windows in rows]
        pairs = list(zip(predictions, answers, strict=True))
        return {
            "loss": np.array([losses[p].sum() for p in slices]),
            "n_scored": np.array([counts[p].sum() for p in slices]),
            "n_examples": np.ones(len(rows)),
            "exact": np.array(
                [max(float(normalize_answer(g) == normalize_answer(a)) for a in references) for g, references in pairs]
            ),
            "overlap": np.array([max(word_f1(g, a) for a in references) for g, references in pairs]),
            "labels": object_array(answers),
            "predictions": object_array(predictions),
        }

    def _predict_answer(self, start: np.ndarray, end: np.ndarray, windows: list[Row]) -> str:
        """Returns the best span over the windows of one question, or "" if no answer scores higher."""
        best, text, null_score = -np.inf, "", np.inf
        for s, e, window in zip(start, end, windows, strict=True):
            null_score = min(null_score, float(s[0] + e[0]))
            score, span = best_span(s, e, window["offset_mapping"])
            if score > best:
                best, text = score, window["context"][span[0] : span[1]]
        return "" if self.has_unanswerable and null_score > best else text


def best_span(start: np.ndarray, end: np.ndarray, offsets: list[list[int]]) -> tuple[float, tuple[int, int]]:
    """Finds the span of the context with the highest sum of start and end logits.

    Args:
        start: Logits of the start of the answer (tokens or more).
        end: Logits of the end of the answer (tokens or more).
        offsets: First and last character of each token in the context; ``[-1, -1]`` for tokens outside of it.

    Returns:
        The score, minus infinity if there is no context, and the first and last character of the span.
    """
    characters = np.array(offsets)
    is_context = characters[:, 0] >= 0
    first, last = (np.where(is_context, scores[: len(characters)], -np.inf) for scores in (start, end))
    sums = first[:, None] + last[None, :]
    sums[np.tril_indices(len(characters), -1)] = -np.inf
    sums[np.triu_indices(len(characters), MAX_ANSWER_TOKENS)] = -np.inf
    i, j = np.unravel_index(sums.argmax(), sums.shape)
    return float(sums[i, j]), (int(characters[i, 0]), int(characters[j, 1]))


def normalize_answer(answer: str) -> str:
    """Removes case, punctuation, articles and extra spaces, as in SQuAD's evaluation (arXiv 1606.05250)."""
    bare = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def word_f1(prediction: str, answer: str) -> float:
    """F1 over the words of two answers; 1 if both are empty, 0 if only one is."""
    predicted_words, answer_words = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not predicted_words or not answer_words:
        return float(predicted_words == answer_words)
    common = sum((Counter(predicted_words) & Counter(answer_words)).values())
    return 2 * common / (len(predicted_words) + len(answer_words))


def _with_answers(dataset: Dataset, label: str, context: str, source: str) -> Dataset:
    """Converts SQuAD's {text: [...], answer_start: [...]} to lists of {text, answer_start}.

    Raises:
        InputError: If the column does not exist or has another form, or an answer is not at its position.
    """
    require_column(dataset, label, source, "task.label")
    try:
        answers = [_parse_answers(value) for value in dataset[label]]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"`task.label` must name a column of {{text: [...], answer_start: [...]}}, but `{label}` of `{source}` is "
            f"{dataset.features[label]}."
        ) from None
    for row, (text, row_answers) in enumerate(zip(dataset[context], answers, strict=True)):
        for answer in row_answers:
            if text is not None and not text.startswith(answer["text"], answer["answer_start"]):
                raise InputError(
                    f"every answer must be in its context at `answer_start`, but in row {row} of `{source}` "
                    f"`{answer['text'][:60]}` is not at {answer['answer_start']}; correct or remove the row."
                )
    return dataset.remove_columns(label).add_column(label, answers, feature=_answers_feature())


def _parse_answers(value: Any) -> list[dict[str, Any]]:
    pairs = (
        zip(value["text"], value["answer_start"], strict=True)
        if isinstance(value, dict)
        else ((answer["text"], answer["answer_start"]) for answer in value)
    )
    return [{"text": str(text), "answer_start": int(start)} for text, start in pairs]


def _answers_feature() -> Any:
    from datasets import List, Value

    return List({"text": Value("string"), "answer_start": Value("int64")})


def _require_room(tokenizer: Any, questions: Iterable[str], length: int, overlap: int, source: str) -> None:
    """Raises InputError if a question leaves less room for the context than the overlap of two windows."""
    longest = max(len(ids) for ids in tokenizer(list(questions), add_special_tokens=False)["input_ids"])
    needed = longest + tokenizer.num_special_tokens_to_add(pair=True) + overlap + 1
    if needed > length:
        raise InputError(
            f"`task.max_length` must leave room for a context after the longest question of `{source}` ({longest} "
            f"tokens), but got {length}; set it to "
            f"{int(np.ceil((needed - overlap) / (1 - STRIDE_SHARE))) + 1} or more."
        )


def _offsets_in_context(windows: Any, window: int) -> list[list[int]]:
    """Returns the first and last character of each context token of a window, ``[-1, -1]`` for other tokens."""
    tokens = zip(windows["offset_mapping"][window], windows.sequence_ids(window), strict=True)
    return [list(offsets) if sequence == 1 else [-1, -1] for offsets, sequence in tokens]


def _answer_tokens(offsets: list[list[int]], answers: list[dict[str, Any]]) -> tuple[int, int]:
    """Returns the first and last token of the first answer, both 0 if the window does not hold all of it."""
    if not answers:
        return 0, 0
    start = answers[0]["answer_start"]
    end = start + len(answers[0]["text"])
    inside = [k for k, (a, b) in enumerate(offsets) if a >= 0 and a < end and b > start]
    is_complete = bool(inside) and offsets[inside[0]][0] <= start and offsets[inside[-1]][1] >= end
    return (inside[0], inside[-1]) if is_complete else (0, 0)

"""Data, metrics and models that a task cannot use are refused with one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_tasks import CASES, SENTENCES, Make, Rows, seq2seq, seq2seq_context, tags

from nas.tasks.evaluation import score
from nas.tasks.labels import multi_hot_to_ids
from search_spaces import InputError


def changed(case: str, **columns: Callable[[str], Any]) -> Rows:
    """The rows of a case with other columns."""
    return lambda s: {**CASES[case][2](s), **{name: value(s) for name, value in columns.items()}}


def only(case: str, *columns: str) -> Rows:
    return lambda s: {name: CASES[case][2](s)[name] for name in columns}


FIRST = SENTENCES[0]
REFUSED: dict[str, tuple[str, Rows | None, dict[str, Any], tuple[str, ...]]] = {
    "a metric of another task": ("tags", None, {"metric": "matthews_correlation"}, ("token-classification", "f1")),
    "a metric of classes for numbers": ("regression", None, {"metric": "accuracy"}, ("(regression)", "pearsonr")),
    "one class a row for lists": (
        "multi-label",
        None,
        {"problem_type": "single_label_classification"},
        ("`task.problem_type`", "multi_label_classification", "remove it"),
    ),
    "a regression on words": (
        "regression",
        changed("regression", label=str.upper),
        {"problem_type": "regression"},
        ("must be numbers", "string"),
    ),
    "a number that is missing": (
        "regression",
        changed("regression", label=lambda s: None if s == FIRST else 0.5),
        {},
        ("unlabelled", "regression-train.csv"),
    ),
    "no list of classes": (
        "multi-label",
        changed("multi-label", label=lambda s: None if s == FIRST else ["a"]),
        {},
        ("unlabelled", "None"),
    ),
    "no tags": ("tags", only("tags", "tokens"), {}, ("`ner_tags`", "tokens", "task.label")),
    "one tag a row": ("tags", changed("tags", ner_tags=lambda s: "O"), {}, ("lists of tags", "string")),
    "texts for words": ("tags", changed("tags", tokens=lambda s: s), {}, ("`task.text`", "lists of words")),
    "a word without a tag": (
        "tags",
        changed("tags", ner_tags=lambda s: tags(s)[1:]),
        {},
        ("row 0", "4 words", "3 tags"),
    ),
    "no answers": ("answers", only("answers", "question", "context"), {}, ("`answers`", "task.label")),
    "answers without a place": (
        "answers",
        changed("answers", answers=lambda s: "film"),
        {},
        ("answer_start", "string"),
    ),
    "an answer at another place": (
        "answers",
        changed("answers", answers=lambda s: {"text": ["film"], "answer_start": [1]}),
        {},
        ("row 0", "`film` is not at 1"),
    ),
    "no context": ("answers", only("answers", "question", "answers"), {}, ("`context`", "task.text")),
    "a question that leaves no room": (
        "answers",
        changed("answers", question=lambda s: "good " * 20),
        {},
        ("`task.max_length`", "20 tokens", "set it to 37 or more"),
    ),
    "a text shorter than a block": ("masks", None, {"max_length": 9999}, ("`task.max_length`", "lower it")),
    "a model that fills no masks": ("next words", None, {"type": "fill-mask"}, ("mask token", "text-generation")),
    "nothing to write": ("pairs", only("pairs", "input"), {}, ("`task.label`", "input")),
    "numbers to write": ("pairs", changed("pairs", output=len), {"label": "output"}, ("`task.label`", "int64")),
    "no recordings": ("speech", only("speech", "text"), {}, ("`audio`", "task.audio")),
    "texts for recordings": ("speech", changed("speech", audio=lambda s: s), {}, ("`task.audio`", "string")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_data_is_refused(case: str, make: Make) -> None:
    name, rows, task, parts = REFUSED[case]
    with pytest.raises(InputError) as refused:
        _ = make(name, rows, **task).splits
    message = str(refused.value)
    assert "\n" not in message and all(text in message for text in parts), message


def test_multi_hot_labels_of_another_length_are_refused() -> None:
    from datasets import Dataset

    data = Dataset.from_dict({"label": [[1, 0], [0, 1, 1]]})
    with pytest.raises(InputError, match=r"`toy` must be 2 numbers 0 or 1.*\[0, 1, 1\]"):
        multi_hot_to_ids(data, "label", 2, "toy")


def test_a_question_fits_at_the_length_in_the_message(make: Make) -> None:
    assert make("answers", changed("answers", question=lambda s: "good " * 20), max_length=37).splits.train


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("nowhere.py:f", ("Python file", "nowhere.py")),
        ("own.py:g", ("must define a function `g`",)),
        ("own.py:broken", ("own.py:broken", "fails", "ZeroDivisionError")),
        ("own.py:nothing", ("must return a finite number", "nan")),
        ("sklearn.metrics:f2_score", ("f2_score", "package.module:function")),
        ("f2_score", ("f2_score", "package.module:function")),
        ("evaluate:no-such-metric", ("evaluate:no-such-metric", "hub")),
    ],
)
def test_bad_metrics_are_refused(source: str, parts: tuple[str, ...], make: Make, text_folder: Path) -> None:
    (text_folder / "own.py").write_text(
        "def broken(labels, predictions):\n    return 1 / 0\n"
        "def nothing(labels, predictions):\n    return float('nan')\n"
    )
    context = make("single label", metrics={"mine": source})
    with pytest.raises(InputError) as refused:
        score(context.load_model(), context.splits.test, ["mine"])
    message = str(refused.value)
    assert "\n" not in message and all(text in message for text in parts), message


@pytest.mark.parametrize("name", ["latency_ms", "my metric", "a:b"])
def test_bad_names_of_metrics_are_refused(name: str, make: Make) -> None:
    with pytest.raises(InputError, match=r"`task\.metrics`"):
        make("single label", metrics={name: "own.py:f"})


def test_the_message_on_a_missing_package_has_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nas.tasks import generation_metrics as text_metrics

    seq2seq("t5", tmp_path / "model")
    monkeypatch.setattr(text_metrics, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install rouge-score"):
        _ = seq2seq_context(tmp_path, objectives={"rougeL": "maximize", "latency_ms": "minimize"}).splits


def test_a_decoder_without_a_first_token_is_refused(tmp_path: Path) -> None:
    seq2seq("t5", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "decoder_start_token_id": None}))
    with pytest.raises(InputError, match="`decoder_start_token_id` in its config"):
        _ = seq2seq_context(tmp_path).splits


@pytest.mark.parametrize(
    ("error", "says"), [(RuntimeError("cut short"), "b.wav.*cut short"), (ImportError("no"), "torchcodec")]
)
def test_a_recording_that_cannot_be_decoded_is_named(
    error: Exception, says: str, make: Make, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Audio, Dataset

    context = make("speech")
    (text_folder / "b.wav").write_bytes(b"RIFF")
    stored = [{"bytes": None, "path": str(text_folder / "b.wav")}] * 4
    data = Dataset.from_dict({"audio": stored, "text": ["the film"] * 4}).cast_column("audio", Audio())

    def fail(*_: Any, **__: Any) -> None:
        raise error

    task = context.splits.task
    monkeypatch.setattr(Audio, "decode_example", fail)
    with pytest.raises(InputError, match=says):
        _ = task.process(data, "toy")[0]

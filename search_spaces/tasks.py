"""The table of tasks, by the names of Hugging Face pipelines: how a model is loaded and what it reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """What is known of a task without its data.

    Attributes:
        auto_class: Name of the transformers auto class that loads a model for it.
        default_metric: The metric of a recipe that names no objectives; None: no recipe can ask for the task.
        reads_text: Whether a model reads sequences of tokens, so that a workload has a sequence length.
    """

    auto_class: str
    default_metric: str | None
    reads_text: bool = True


TASKS: dict[str, Task] = {
    "text-classification": Task("AutoModelForSequenceClassification", "accuracy"),
    "token-classification": Task("AutoModelForTokenClassification", "f1"),
    "question-answering": Task("AutoModelForQuestionAnswering", "f1"),
    "fill-mask": Task("AutoModelForMaskedLM", "loss"),
    "text-generation": Task("AutoModelForCausalLM", "loss"),
    "text2text-generation": Task("AutoModelForSeq2SeqLM", "loss"),
    "automatic-speech-recognition": Task("AutoModelForSpeechSeq2Seq", "loss"),
    "image-classification": Task("AutoModelForImageClassification", "accuracy", reads_text=False),
    "image-feature-extraction": Task("AutoModel", None, reads_text=False),
}
"""Name of the task -> what is known of it."""

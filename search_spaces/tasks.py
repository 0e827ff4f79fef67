"""The table of tasks, named as Hugging Face pipelines are: the auto class, the default metric, the kind of input."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """Properties of a task that do not depend on its data.

    Attributes:
        auto_class: Name of the transformers auto class that loads a model for it.
        default_metric: The metric of a recipe without objectives; None if a recipe cannot use the task.
        reads_text: Whether the model reads sequences of tokens, so that a workload needs a sequence length.
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
"""Name of the task -> its properties."""

"""The table of tasks, named as Hugging Face pipelines are: what models of a task read, output and are scored on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """Properties of a task that do not depend on its data.

    Attributes:
        auto_class: Name of the transformers auto class that loads a model for it.
        default_metric: The metric of a recipe without objectives; None if a recipe cannot use the task.
        reads_text: Whether the model reads sequences of tokens, or of frames of a sound, so that a workload needs a
            sequence length.
        outputs: Names of the model's outputs that are scored, distilled, and compared after an export.
        labels_tokens: Whether the outputs have a row for every token, not one vector for every example.
        shares_embedding: Whether its output head may share the table of token embeddings.
        has_labels: Whether its data has labels. Without, the model is used as it is, and is what subnetworks are
            trained on and compared with.
        kept: Dimensions that set the size of the outputs: they vary only where a recipe gives choices.
        pipeline: Name of its Hugging Face pipeline, if it is not the task's.
    """

    auto_class: str
    default_metric: str | None
    reads_text: bool = True
    outputs: tuple[str, ...] = ("logits",)
    labels_tokens: bool = False
    shares_embedding: bool = False
    has_labels: bool = True
    kept: tuple[str, ...] = ()
    pipeline: str = ""

    @property
    def gives_vectors(self) -> bool:
        """Whether the vectors of texts are made of the outputs, and nothing else."""
        return self.reads_text and self.outputs == ("last_hidden_state",)


TOWERS_TASK = "zero-shot-image-classification"
"""The first task of models with a tower for images and one for texts."""

RETRIEVAL_TASK = "image-text-retrieval"

TASKS: dict[str, Task] = {
    "text-classification": Task("AutoModelForSequenceClassification", "accuracy"),
    "token-classification": Task("AutoModelForTokenClassification", "f1", labels_tokens=True),
    "question-answering": Task(
        "AutoModelForQuestionAnswering", "f1", outputs=("start_logits", "end_logits"), labels_tokens=True
    ),
    "fill-mask": Task("AutoModelForMaskedLM", "loss", labels_tokens=True, shares_embedding=True),
    "feature-extraction": Task(
        "AutoModel",
        "cosine_similarity",
        outputs=("last_hidden_state",),
        has_labels=False,
        kept=("hidden_size",),
    ),
    "sentence-similarity": Task(
        "AutoModel", "spearman", outputs=("last_hidden_state",), has_labels=False, kept=("hidden_size",)
    ),
    "text-ranking": Task("AutoModelForSequenceClassification", "ndcg10"),
    "text-generation": Task("AutoModelForCausalLM", "loss", labels_tokens=True, shares_embedding=True),
    "text2text-generation": Task("AutoModelForSeq2SeqLM", "loss", labels_tokens=True),
    "automatic-speech-recognition": Task("AutoModelForSpeechSeq2Seq", "loss", labels_tokens=True),
    "automatic-speech-recognition-ctc": Task(
        "AutoModelForCTC", "wer", labels_tokens=True, pipeline="automatic-speech-recognition"
    ),
    "audio-classification": Task("AutoModelForAudioClassification", "accuracy"),
    "image-classification": Task("AutoModelForImageClassification", "accuracy", reads_text=False),
    "semantic-segmentation": Task(
        "AutoModelForSemanticSegmentation",
        "mean_iou",
        reads_text=False,
        labels_tokens=True,
        pipeline="image-segmentation",
    ),
    TOWERS_TASK: Task(
        "AutoModelForZeroShotImageClassification", "accuracy", reads_text=False, outputs=("logits_per_image",)
    ),
    RETRIEVAL_TASK: Task(
        "AutoModelForZeroShotImageClassification",
        "recall10",
        reads_text=False,
        outputs=("image_embeds", "text_embeds"),
        pipeline=TOWERS_TASK,
    ),
    "object-detection": Task("AutoModelForObjectDetection", "map", reads_text=False, outputs=("logits", "pred_boxes")),
    "image-feature-extraction": Task(
        "AutoModel", None, reads_text=False, outputs=("last_hidden_state",), has_labels=False
    ),
}
"""Name of the task -> its properties."""

TEXT_ENCODER_TASKS = (
    "text-classification",
    "token-classification",
    "question-answering",
    "fill-mask",
    "feature-extraction",
    "sentence-similarity",
    "text-ranking",
)
DECODER_TASKS = ("text-generation", "text-classification", "token-classification", "question-answering")
SPEECH_ENCODER_TASKS = ("automatic-speech-recognition-ctc", "audio-classification")
IMAGE_ENCODER_TASKS = ("image-classification",)
DETECTION_TASKS = ("object-detection",)
TRANSLATION_TASKS = ("text2text-generation",)
"""The tasks of families of one kind, the most common first."""


def without(tasks: tuple[str, ...], *missing: str) -> tuple[str, ...]:
    """A group of tasks without those for which transformers has no class of a family."""
    return tuple(task for task in tasks if task not in missing)

"""Columns: which task a data set is for, and its columns, where a recipe does not name them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from nas.tasks.data import TEXT_DTYPES, string_columns
from nas.tasks.label_maps import image_columns
from nas.tasks.labels import is_list
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset

TaskColumns = dict[str, Any]
"""Keys of a recipe's ``task`` section that name columns -> the columns."""

LABELS = ("label", "labels", "target", "class", "category", "sentiment", "stars", "rating", "score", "y")
TAGS = ("ner_tags", "tags", "labels", "label", "pos_tags", "chunk_tags")
TEXTS = ("text", "sentence", "content", "review", "document", "question", "body")
QUERIES = ("query",)
DOCUMENTS = ("document", "passage", "documents", "passages", "docs")
TRANSCRIPTS = ("text", "sentence", "transcription", "transcript")
TEXT_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("query", "passage"),
    ("text_a", "text_b"),
)
WRITTEN_PAIRS = (
    ("source", "target"),
    ("input", "output"),
    ("article", "highlights"),
    ("document", "summary"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("question", "answer"),
    ("prompt", "completion"),
)
MOST_CLASSES = 20
"""Most distinct values of a column that is taken for a label though its name does not say so."""
SAMPLED_ROWS = 1000


def guess_task(dataset: Dataset, tasks: Collection[str], head: str | None, source: str) -> str:
    """The task that a data set is for: that of the model's trained head if the columns fit, else by the columns.

    The head of a language model, or a bare encoder without one, is no hint where the texts have labels.

    Args:
        dataset: The training data.
        tasks: Tasks that the model can do.
        head: Task of the model's head, None if it has none.
        source: What to call the data in an error.

    Raises:
        InputError: If the columns fit none of them.
    """
    fitting = [task for task, columns_of in COLUMNS.items() if task in tasks and columns_of(dataset) is not None]
    if not fitting:
        raise InputError(
            f"the columns must fit a task of the model ({', '.join(task for task in COLUMNS if task in tasks)}), but "
            f"`{source}` has {dataset.column_names}; name the task with `--task` to see what it needs."
        )
    is_hint = head in fitting and (head not in UNLABELLED or fitting[0] in UNLABELLED)
    return head if is_hint and head is not None else fitting[0]


def guess_columns(dataset: Dataset, task: str, source: str) -> TaskColumns:
    """The columns of a task, as keys of a recipe's ``task`` section.

    Raises:
        InputError: If the data set lacks one.
    """
    columns = COLUMNS[task](dataset)
    if columns is None:
        raise InputError(
            f"{task} needs {NEEDED[task]}, but `{source}` has {dataset.column_names}; rename its columns, or choose "
            "another task with `--task`."
        )
    return columns


def _image_columns(dataset: Dataset) -> TaskColumns | None:
    images = image_columns(dataset)
    label = _label_column(dataset, images)
    return {"image": images[0], "label": label} if images and label else None


def _map_columns(dataset: Dataset) -> TaskColumns | None:
    images = image_columns(dataset)
    maps = [name for name in images if name != "image"]
    return {"image": "image", "label": maps[0]} if len(maps) == 1 < len(images) else None


def _caption_columns(dataset: Dataset) -> TaskColumns | None:
    images = image_columns(dataset)
    texts = string_columns(dataset)
    return {"image": images[0], "text": _named(texts, TEXTS) or texts[0]} if images and texts else None


def _speech_columns(dataset: Dataset) -> TaskColumns | None:
    audio = next((name for name, feature in dataset.features.items() if _is_audio(feature)), None)
    texts = string_columns(dataset)
    return {"audio": audio, "label": _named(texts, TRANSCRIPTS) or texts[0]} if audio and texts else None


def _labelled_sound_columns(dataset: Dataset) -> TaskColumns | None:
    audio = next((name for name, feature in dataset.features.items() if _is_audio(feature)), None)
    label = _label_column(dataset, [audio]) if audio else None
    return {"audio": audio, "label": label} if audio and label else None


def _is_audio(feature: Any) -> bool:
    from datasets import Audio

    return isinstance(feature, Audio) or (is_list(feature) and str(feature.feature.dtype).startswith("float"))


def _answer_columns(dataset: Dataset) -> TaskColumns | None:
    names = ("question", "context", "answers")
    return {"text": list(names[:2]), "label": names[2]} if {*names} <= {*dataset.column_names} else None


def _tag_columns(dataset: Dataset) -> TaskColumns | None:
    lists = {name: feature.feature for name, feature in dataset.features.items() if is_list(feature)}
    label = _named(list(lists), TAGS)
    words = [name for name, item in lists.items() if name != label and getattr(item, "dtype", "") in TEXT_DTYPES]
    return {"text": words[0], "label": label} if label and words else None


def _written_columns(dataset: Dataset) -> TaskColumns | None:
    texts = string_columns(dataset)
    pair = _pair(texts, WRITTEN_PAIRS) or texts[:2]
    return {"text": pair[0], "label": pair[1]} if len(pair) == 2 else None


def _labeled_columns(dataset: Dataset) -> TaskColumns | None:
    texts = string_columns(dataset)
    label = _label_column(dataset, [_longest(dataset, texts)] if texts else [])
    texts = [name for name in texts if name != label]
    if label is None or not texts:
        return None
    text = _pair(texts, TEXT_PAIRS) or _named(texts, TEXTS) or _longest(dataset, texts)
    return {"text": text, "label": label}


def _text_columns(dataset: Dataset) -> TaskColumns | None:
    texts = string_columns(dataset)
    return {"text": _named(texts, TEXTS) or _longest(dataset, texts)} if texts else None


def _ranking_columns(dataset: Dataset) -> TaskColumns | None:
    texts = string_columns(dataset)
    query, document = _named(texts, QUERIES), _named(dataset.column_names, DOCUMENTS)
    label = _named([name for name in dataset.column_names if name not in (query, document)], LABELS)
    if query is None or document is None or label is None:
        return None
    return {"text": [query, document], "label": label}


def _similarity_columns(dataset: Dataset) -> TaskColumns | None:
    texts = string_columns(dataset)
    pair = _pair(texts, TEXT_PAIRS)
    return {"text": pair} if pair else _text_columns(dataset)


def _object_columns(dataset: Dataset) -> TaskColumns | None:
    from datasets import Image

    images = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    return {"image": images[0], "label": "objects"} if images and "objects" in dataset.features else None


COLUMNS: dict[str, Callable[[Dataset], TaskColumns | None]] = {
    "object-detection": _object_columns,
    "semantic-segmentation": _map_columns,
    "image-classification": _image_columns,
    "zero-shot-image-classification": _image_columns,
    "image-text-retrieval": _caption_columns,
    "audio-classification": _labelled_sound_columns,
    "automatic-speech-recognition": _speech_columns,
    "automatic-speech-recognition-ctc": _speech_columns,
    "question-answering": _answer_columns,
    "token-classification": _tag_columns,
    "text-ranking": _ranking_columns,
    "text-classification": _labeled_columns,
    "text2text-generation": _written_columns,
    "text-generation": _text_columns,
    "fill-mask": _text_columns,
    "feature-extraction": _text_columns,
    "sentence-similarity": _similarity_columns,
}
"""Task -> its columns in a data set, None if that lacks them; the task that asks for most comes first."""

LANGUAGE_MODELING = ("text-generation", "fill-mask")
UNLABELLED = (*LANGUAGE_MODELING, "feature-extraction", "sentence-similarity")
NEEDED = {
    **dict.fromkeys(
        ("image-classification", "zero-shot-image-classification"), "a column of images and one of labels"
    ),
    **dict.fromkeys(
        ("automatic-speech-recognition", "automatic-speech-recognition-ctc"), "a column of recordings and one of texts"
    ),
    "object-detection": "a column of images and `objects`",
    "semantic-segmentation": "a column `image` and one other column of images, the maps of labels",
    "image-text-retrieval": "a column of images and one of texts",
    "audio-classification": "a column of recordings and one of labels",
    "question-answering": "columns `question`, `context` and `answers`",
    "token-classification": "a column of lists of words and one of lists of tags",
    "text2text-generation": "two columns of texts",
    "text-ranking": "columns `query`, `document` and `label`",
    "text-classification": "a column of texts and one of labels",
    **dict.fromkeys(UNLABELLED, "a column of texts"),
}


def _label_column(dataset: Dataset, others: Sequence[str]) -> str | None:
    """A column with the name of a label, else of class labels, else with few distinct values."""
    from datasets import ClassLabel

    features = {name: feature for name, feature in dataset.features.items() if name not in others}
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    return _named(list(features), LABELS) or next(iter(classes), None) or _few_valued(dataset, list(features))


def _few_valued(dataset: Dataset, names: Sequence[str]) -> str | None:
    """The last column that repeats a few integers, booleans or strings."""
    head = dataset.select(range(min(SAMPLED_ROWS, len(dataset))))
    for name in reversed(names):
        dtype = str(getattr(dataset.features[name], "dtype", ""))
        if dtype in TEXT_DTYPES or dtype.startswith(("int", "uint", "bool")):
            distinct = len(head.unique(name))
            if 2 <= distinct <= min(MOST_CLASSES, len(head) // 2):
                return name
    return None


def _named(names: Sequence[str], known: Sequence[str]) -> str | None:
    """The first of the known names that is there, in any case of letters."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in known if name in by_lower), None)


def _pair(names: Sequence[str], known: Sequence[tuple[str, str]]) -> list[str] | None:
    return next((list(pair) for pair in known if {*pair} <= {*names}), None)


def _longest(dataset: Dataset, names: Sequence[str]) -> str:
    """The column with the longest texts."""
    head = dataset.select(range(min(100, len(dataset))))
    return max(names, key=lambda name: sum(len(text or "") for text in head[name]))

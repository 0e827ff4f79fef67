"""The task types by their Hugging Face names: one file and one line per task. No import of torch."""

from __future__ import annotations

from nas.tasks.types.audio_classification import AudioClassification
from nas.tasks.types.automatic_speech_recognition import AutomaticSpeechRecognition
from nas.tasks.types.automatic_speech_recognition_ctc import AutomaticSpeechRecognitionCtc
from nas.tasks.types.base import TaskType
from nas.tasks.types.feature_extraction import FeatureExtraction
from nas.tasks.types.fill_mask import FillMask
from nas.tasks.types.image_classification import ImageClassification
from nas.tasks.types.image_text_retrieval import ImageTextRetrieval
from nas.tasks.types.object_detection import ObjectDetection
from nas.tasks.types.question_answering import QuestionAnswering
from nas.tasks.types.semantic_segmentation import SemanticSegmentation
from nas.tasks.types.sentence_similarity import SentenceSimilarity
from nas.tasks.types.text2text_generation import Text2TextGeneration
from nas.tasks.types.text_classification import TextClassification
from nas.tasks.types.text_generation import TextGeneration
from nas.tasks.types.text_ranking import TextRanking
from nas.tasks.types.token_classification import TokenClassification
from nas.tasks.types.zero_shot_image_classification import ZeroShotImageClassification

TASK_TYPES: dict[str, type[TaskType]] = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "fill-mask": FillMask,
    "feature-extraction": FeatureExtraction,
    "sentence-similarity": SentenceSimilarity,
    "text-ranking": TextRanking,
    "text-generation": TextGeneration,
    "text2text-generation": Text2TextGeneration,
    "automatic-speech-recognition": AutomaticSpeechRecognition,
    "automatic-speech-recognition-ctc": AutomaticSpeechRecognitionCtc,
    "audio-classification": AudioClassification,
    "image-classification": ImageClassification,
    "semantic-segmentation": SemanticSegmentation,
    "zero-shot-image-classification": ZeroShotImageClassification,
    "image-text-retrieval": ImageTextRetrieval,
    "object-detection": ObjectDetection,
}

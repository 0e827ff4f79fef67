"""Automatic speech recognition: the transcript of a recording, with Whisper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nas.tasks.batches import Row, row_numbers
from nas.tasks.data import require_column, require_texts
from nas.tasks.labels import is_list
from nas.tasks.types.base import random_tokens
from nas.tasks.types.sequence_to_sequence import SequenceToSequence
from search_spaces import InputError
from search_spaces.errors import short_error

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedConfig

    from predictors import Workload


class AutomaticSpeechRecognition(SequenceToSequence):
    """Recordings are a column of `datasets.Audio`, or lists of samples at the rate of the feature extractor."""

    processor_class = "AutoProcessor"
    folder_builder = "audiofolder"

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the processor."""
        return self.processor.tokenizer

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Computes log-mel features when a row is read; also tokenizes the transcript and keeps its text."""
        column, target = self.task.audio, self.label_column or "text"
        require_column(examples, target, source, "task.label")
        require_texts(examples, target, source, "task.label")
        self._require_recordings(examples, column, source)
        tokenizer, length, start = self.tokenizer, self.task.max_length, self.config.decoder_start_token_id

        def transform(rows: dict[str, Any]) -> dict[str, Any]:
            ids = tokenizer(rows[target], truncation=True, max_length=length)["input_ids"]
            labels = [row[1:] if row[0] == start else row for row in ids]
            samples = [self._samples(recording, source) for recording in rows[column]]
            return {
                "input_features": self._log_mel_features(samples),
                "labels": labels,
                "target": rows[target],
                **row_numbers(rows),
            }

        return _undecoded(examples, column).with_transform(transform)

    def encoder_inputs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """Stacks the features: Whisper pads every recording to 30 seconds."""
        import torch

        return {"input_features": torch.stack([row["input_features"] for row in rows])}

    @classmethod
    def dummy_inputs(
        cls, config: PreTrainedConfig, workload: Workload, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Returns random features of a recording and random tokens as inputs of the decoder."""
        import torch

        shape = (workload.batch_size, config.num_mel_bins, 2 * config.max_source_positions)
        return {
            "input_features": torch.randn(shape, generator=generator),
            "decoder_input_ids": random_tokens(config, workload, generator),
        }

    def _require_recordings(self, examples: Dataset, column: str, source: str) -> None:
        """Raises InputError if the column does not exist or holds no recordings."""
        require_column(examples, column, source, "task.audio")
        feature = examples.features[column]
        if not is_list(feature) and not _is_audio(feature):
            raise InputError(f"`task.audio` must name an audio column, but `{column}` of `{source}` is {feature}.")

    def _samples(self, recording: Any, source: str) -> Any:
        """The samples of a recording, given as such or as stored, at the rate of the feature extractor.

        Raises:
            InputError: If it cannot be decoded.
        """
        from datasets import Audio

        if isinstance(recording, list):
            return recording
        try:
            rate = self.processor.feature_extractor.sampling_rate
            return Audio(sampling_rate=rate).decode_example(recording)["array"]
        except ImportError as error:
            raise InputError(
                f"recordings of `{source}` cannot be decoded: {short_error(error)}; pip install torchcodec."
            ) from None
        except Exception as error:
            name = (recording or {}).get("path") or "without a file"
            raise InputError(
                f"the recording `{name}` of `{source}` cannot be decoded ({short_error(error)}); replace or remove it."
            ) from None

    def _log_mel_features(self, samples: list[Any]) -> list[torch.Tensor]:
        extractor = self.processor.feature_extractor
        return list(extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"])


def _is_audio(feature: Any) -> bool:
    from datasets import Audio

    return isinstance(feature, Audio)


def _undecoded(examples: Dataset, column: str) -> Dataset:
    """The examples with recordings as stored, if they are not lists of samples."""
    from datasets import Audio

    return examples.cast_column(column, Audio(decode=False)) if _is_audio(examples.features[column]) else examples

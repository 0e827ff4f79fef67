"""Automatic speech recognition: the transcript of a recording, with Whisper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nas.tasks.batches import Row, row_numbers
from nas.tasks.data import require_column, require_texts
from nas.tasks.sounds import require_recordings, samples_of, undecoded
from nas.tasks.types.base import random_tokens
from nas.tasks.types.sequence_to_sequence import SequenceToSequence

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
        require_recordings(examples, column, source)
        rate = self.processor.feature_extractor.sampling_rate
        tokenizer, length, start = self.tokenizer, self.task.max_length, self.config.decoder_start_token_id

        def transform(rows: dict[str, Any]) -> dict[str, Any]:
            ids = tokenizer(rows[target], truncation=True, max_length=length)["input_ids"]
            labels = [row[1:] if row[0] == start else row for row in ids]
            samples = [samples_of(recording, rate, source) for recording in rows[column]]
            return {
                "input_features": self._log_mel_features(samples),
                "labels": labels,
                "target": rows[target],
                **row_numbers(rows),
            }

        return undecoded(examples, column).with_transform(transform)

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

    def _log_mel_features(self, samples: list[Any]) -> list[torch.Tensor]:
        extractor = self.processor.feature_extractor
        return list(extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"])

"""Audio classification: the labels of a recording."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nas.tasks.batches import Batch, Row, row_numbers
from nas.tasks.sounds import require_recordings, samples_of, undecoded
from nas.tasks.types.classification import Classification, targets
from nas.tasks.waves import configure_waves, padded, random_sounds

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedConfig

    from predictors import Workload


class AudioClassification(Classification):
    """Recordings are a column of `datasets.Audio`, or lists of samples at the rate of the feature extractor."""

    processor_class = "AutoFeatureExtractor"
    folder_builder = "audiofolder"

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Computes the model's inputs when a row is read, and converts labels to targets."""
        column, label, problem_type, classes = self.task.audio, self.label, self.problem_type, len(self.names)
        require_recordings(examples, column, source)
        rate = self.processor.sampling_rate

        def transform(rows: dict[str, Any]) -> dict[str, Any]:
            samples = [samples_of(recording, rate, source) for recording in rows[column]]
            inputs = [self.processor(one, sampling_rate=rate, return_tensors="np") for one in samples]
            return {
                "sound": [each[self.processor.model_input_names[0]][0] for each in inputs],
                "labels": targets(rows[label], problem_type, classes),
                **row_numbers(rows),
            }

        return undecoded(examples, column).with_transform(transform)

    def collate(self, rows: list[Row]) -> Batch:
        """Pads waves to the longest; spectrograms are as long as each other."""
        import torch

        return {
            **padded(self.processor, [row["sound"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    def configure(self, config: PreTrainedConfig) -> None:
        """Sets the problem type, and keeps every layer in training."""
        super().configure(config)
        configure_waves(config)

    @classmethod
    def dummy_inputs(
        cls, config: PreTrainedConfig, workload: Workload, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Returns random sounds."""
        return random_sounds(config, workload, generator)

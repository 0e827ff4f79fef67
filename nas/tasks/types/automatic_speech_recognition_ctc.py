"""Speech recognition with CTC (Graves et al. 2006): a character, or none, for every frame of a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.tasks import metrics
from nas.tasks.batches import IGNORE_INDEX, Batch, Row, model_inputs, row_numbers
from nas.tasks.data import require_column, require_texts
from nas.tasks.generation_metrics import GENERATION_METRICS
from nas.tasks.metrics import Metric, object_array
from nas.tasks.sounds import require_recordings, samples_of, undecoded
from nas.tasks.types.base import TaskInputs, TaskType
from nas.tasks.waves import configure_waves, padded, random_sounds
from search_spaces import InputError
from search_spaces.inputs import frames_of

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedModel

    from nas.tasks.losses import LogitsAndLabels
    from predictors import Workload

ERROR_RATES = ("wer", "cer")


class AutomaticSpeechRecognitionCtc(TaskType):
    """Recordings are a column of `datasets.Audio`, or lists of samples at the rate of the feature extractor."""

    processor_class = "AutoProcessor"
    folder_builder = "audiofolder"
    reference_columns = ("target",)
    metrics: Mapping[str, Metric] = {
        "loss": metrics.ratio_of_sums("loss", "n_scored"),
        **{name: GENERATION_METRICS[name].metric for name in ERROR_RATES},
    }

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        if len(self.processor.tokenizer) > self.config.vocab_size:
            raise InputError(
                f"`vocab_size` of `{inputs.model}` must be at least the {len(self.processor.tokenizer)} tokens of its "
                f"tokenizer, but is {self.config.vocab_size}; set it in its config.json."
            )

    def process(self, examples: Dataset, source: str) -> Dataset:
        """Computes the model's inputs when a row is read; also tokenizes the transcript and keeps its text."""
        column, target = self.task.audio, self.label_column or "text"
        require_column(examples, target, source, "task.label")
        require_texts(examples, target, source, "task.label")
        require_recordings(examples, column, source)
        extractor, tokenizer = self.processor.feature_extractor, self.processor.tokenizer

        def transform(rows: dict[str, Any]) -> dict[str, Any]:
            rate = extractor.sampling_rate
            samples = [samples_of(recording, rate, source) for recording in rows[column]]
            inputs = [extractor(one, sampling_rate=rate, return_tensors="np") for one in samples]
            return {
                "sound": [each[extractor.model_input_names[0]][0] for each in inputs],
                "labels": [tokenizer(text)["input_ids"] for text in rows[target]],
                "target": rows[target],
                **row_numbers(rows),
            }

        return undecoded(examples, column).with_transform(transform)

    def collate(self, rows: list[Row]) -> Batch:
        """Pads waves and labels to the longest."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        labels = [torch.tensor(row["labels"]) for row in rows]
        sounds = padded(self.processor.feature_extractor, [row["sound"] for row in rows])
        return {**sounds, "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)}

    def configure(self, config: PreTrainedConfig) -> None:
        """Sets the loss to the mean over characters, and keeps every layer in training."""
        super().configure(config)
        configure_waves(config)
        config.ctc_loss_reduction, config.ctc_zero_infinity = "mean", True

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Returns the logits (examples, frames, vocabulary), and which frames are no padding: labels of 0."""
        import torch

        logits = outputs.logits
        frames = torch.arange(logits.shape[1], device=logits.device)
        is_padding = frames >= self._frames(batch, logits)[:, None]
        return [(logits, torch.where(is_padding, IGNORE_INDEX, 0))]

    def example_stats(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns the loss a character, and reference and recognized texts with their errors."""
        logits = model(**model_inputs(batch)).logits.float()
        frames = self._frames(batch, logits)
        texts = self._texts(logits, frames)
        references = [row["target"] for (row,) in rows]
        loss, count = self._losses(logits, frames, batch["labels"])
        stats = {"labels": object_array(references), "predictions": object_array(texts)}
        stats |= {"loss": loss.double().cpu().numpy(), "n_scored": count.cpu().numpy()}
        for name in ERROR_RATES:
            stats.update(GENERATION_METRICS[name].count(references, texts))
        return stats

    def _frames(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Frames of each example that are no padding (examples,)."""
        import torch

        mask = batch.get("attention_mask")
        if mask is None:
            return torch.full((len(logits),), logits.shape[1], device=logits.device)
        return torch.as_tensor(frames_of(self.config, mask.sum(-1)))

    def _texts(self, logits: torch.Tensor, frames: torch.Tensor) -> list[str]:
        """The most probable token of each frame, repeated ones and blanks left out."""
        ids = [row[:length].tolist() for row, length in zip(logits.argmax(-1), frames.tolist(), strict=True)]
        return [str(text) for text in self.processor.tokenizer.batch_decode(ids)]

    def _losses(
        self, logits: torch.Tensor, frames: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each example, summed over its characters, and their number."""
        import torch.nn.functional as F

        count = (labels != IGNORE_INDEX).sum(-1)
        scores = F.log_softmax(logits, -1).transpose(0, 1)
        options = {"blank": self.config.pad_token_id, "reduction": "none", "zero_infinity": True}
        return F.ctc_loss(scores, labels.clamp(min=0), frames, count, **options), count

    @classmethod
    def dummy_inputs(
        cls, config: PreTrainedConfig, workload: Workload, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Returns random sounds."""
        return random_sounds(config, workload, generator)

"""Sequence to sequence: the common part of tasks in which a decoder writes a text from an encoder's input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nas.tasks import metrics
from nas.tasks.batches import IGNORE_INDEX, Batch, Row, model_inputs
from nas.tasks.generation_metrics import GENERATION_METRICS
from nas.tasks.metrics import Metric, object_array
from nas.tasks.types.base import TaskInputs, TaskType
from search_spaces import InputError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel

    from nas.tasks.losses import LogitsAndLabels


class SequenceToSequence(TaskType):
    """Rows hold the tokens of the target text as ``labels`` and the text itself as ``target``.

    Loss, perplexity and accuracy are means over tokens under teacher forcing. All other metrics compare the target
    with a text that the model generates greedily, of at most ``task.max_length`` tokens.
    """

    reference_columns: ClassVar[tuple[str, ...]] = ("target",)
    has_vocabulary_logits = True
    per_token_metrics = frozenset({"loss", "perplexity", "accuracy"})
    metrics: Mapping[str, Metric] = {
        "loss": metrics.ratio_of_sums("loss", "n_scored"),
        "perplexity": metrics.perplexity,
        "accuracy": metrics.ratio_of_sums("correct", "n_scored"),
        **{name: text.metric for name, text in GENERATION_METRICS.items()},
    }

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        if getattr(self.config, "decoder_start_token_id", None) is None:
            raise InputError(
                f"the config of `{inputs.model}` must name the first token of the decoder; set "
                "`decoder_start_token_id` in its config.json."
            )

    def metric(self, name: str) -> Metric:
        """Returns a metric by name; InputError if it does not exist or its package is not installed."""
        if name in GENERATION_METRICS and name not in self.task.metrics:
            GENERATION_METRICS[name].require(name)
        return super().metric(name)

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """The tokenizer of the decoder."""

    @abstractmethod
    def encoder_inputs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """Collates the inputs of the encoder."""

    def collate(self, rows: list[Row]) -> Batch:
        """Collates encoder inputs, labels, and the labels shifted by one as decoder inputs."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        tokens = [torch.tensor(row["labels"]) for row in rows]
        labels = pad_sequence(tokens, batch_first=True, padding_value=IGNORE_INDEX)
        decoder_inputs = labels.roll(1, 1).masked_fill(labels.roll(1, 1) == IGNORE_INDEX, self.tokenizer.pad_token_id)
        decoder_inputs[:, 0] = self.config.decoder_start_token_id
        return {**self.encoder_inputs(rows), "decoder_input_ids": decoder_inputs, "labels": labels}

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Returns the logits (examples, tokens, vocabulary) and the labels."""
        return [(outputs.logits, batch["labels"])]

    def example_stats(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns loss and correct tokens of each example and, if a metric needs it, the generated text."""
        from nas.tasks.losses import loss_by_example

        outputs = self.logits_and_labels(model(**model_inputs(batch)), batch)
        loss, count = loss_by_example(outputs, self.activation)
        correct = (outputs[0][0].argmax(-1) == batch["labels"]).sum(1)
        counts = {"loss": loss.double(), "n_scored": count, "correct": correct, "n_examples": count.clamp(1, 1)}
        stats = {name: tensor.cpu().numpy() for name, tensor in counts.items()}
        generated = [name for name in metric_names if name in GENERATION_METRICS or name in self.task.metrics]
        return {**stats, **self._generated_stats(model, batch, rows, generated)} if generated else stats

    def _generated_stats(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns generated texts, reference texts, and the counts of the metrics."""
        inputs = {name: tensor for name, tensor in model_inputs(batch).items() if name != "decoder_input_ids"}
        ids = model.generate(**inputs, max_new_tokens=self.task.max_length, do_sample=False, num_beams=1)
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        references = [row["target"] for (row,) in rows]
        stats = {"labels": object_array(references), "predictions": object_array(texts)}
        for name in metric_names:
            if name in GENERATION_METRICS and name not in self.task.metrics:
                stats.update(GENERATION_METRICS[name].count(references, texts))
        return stats

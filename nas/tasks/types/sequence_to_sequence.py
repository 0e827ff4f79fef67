"""Sequence to sequence: an encoder reads, a decoder writes; what texts and recordings have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.tasks import metrics
from nas.tasks.batches import IGNORED, Batch, Row, model_inputs
from nas.tasks.generation_metrics import TEXT_METRICS
from nas.tasks.metrics import Metric, objects
from nas.tasks.types.base import TaskInputs, TaskType, padded_labels
from search_spaces import InputError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel

    from nas.tasks.losses import Scored


class SequenceToSequence(TaskType):
    """A text is written token by token; rows hold its tokens as ``labels`` and the text itself as ``target``.

    Loss, perplexity and accuracy are means over tokens, each predicted after the right ones. All other qualities
    compare a text that the model generates greedily, of up to ``task.max_length`` tokens.
    """

    compared = ("target",)
    writes_words = True
    metrics: Mapping[str, Metric] = {
        "loss": metrics.mean_of("loss", "scored"),
        "perplexity": metrics.perplexity,
        "accuracy": metrics.mean_of("right", "scored"),
        **{name: text.metric for name, text in TEXT_METRICS.items()},
    }

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        if getattr(self.config, "decoder_start_token_id", None) is None:
            raise InputError(
                f"the config of `{inputs.model}` must say with which token the decoder starts; set "
                "`decoder_start_token_id` in its config.json."
            )

    def metric(self, name: str) -> Metric:
        """As for every task; one of generated texts needs its package."""
        if name in TEXT_METRICS and name not in self.task.metrics:
            TEXT_METRICS[name].require(name)
        return super().metric(name)

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """Of the decoder."""

    @abstractmethod
    def encoder_inputs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """What the encoder reads."""

    def collate(self, rows: list[Row]) -> Batch:
        """Encoder inputs, labels, and the same shifted by one as what the decoder has read."""
        labels = padded_labels(rows, max(len(row["labels"]) for row in rows))
        decoder_inputs = labels.roll(1, 1).masked_fill(labels.roll(1, 1) == IGNORED, self.tokenizer.pad_token_id)
        decoder_inputs[:, 0] = self.config.decoder_start_token_id
        return {**self.encoder_inputs(rows), "decoder_input_ids": decoder_inputs, "labels": labels}

    def scored(self, outputs: Any, batch: Batch) -> list[Scored]:
        """The scores of each token (examples, tokens, words)."""
        return [(outputs.logits, batch["labels"])]

    def found(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], wanted: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Of each example the loss and the right tokens; where a quality needs it, the generated text."""
        from nas.tasks.losses import loss_by_example

        scored = self.scored(model(**model_inputs(batch)), batch)
        loss, count = loss_by_example(scored, self.activation)
        right = (scored[0][0].argmax(-1) == batch["labels"]).sum(1)
        counts = {"loss": loss.double(), "scored": count, "right": right, "examples": count.clamp(1, 1)}
        found = {name: tensor.cpu().numpy() for name, tensor in counts.items()}
        generated = [name for name in wanted if name in TEXT_METRICS or name in self.task.metrics]
        return {**found, **self._texts(model, batch, rows, generated)} if generated else found

    def _texts(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], wanted: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Generated and right texts, and what the metrics count of them."""
        inputs = {name: tensor for name, tensor in model_inputs(batch).items() if name != "decoder_input_ids"}
        ids = model.generate(**inputs, max_new_tokens=self.task.max_length, do_sample=False, num_beams=1)
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        right = [row["target"] for (row,) in rows]
        found = {"labels": objects(right), "predictions": objects(texts)}
        for name in wanted:
            if name in TEXT_METRICS and name not in self.task.metrics:
                found.update(TEXT_METRICS[name].count(right, texts))
        return found

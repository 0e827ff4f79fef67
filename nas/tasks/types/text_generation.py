"""Text generation: a causal language model predicts the next token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nas.tasks.batches import IGNORE_INDEX, Batch, Row, model_inputs
from nas.tasks.harness import harness_sources
from nas.tasks.metrics import Metric
from nas.tasks.types.base import TaskInputs, TaskType
from nas.tasks.types.harness_questions import HarnessQuestions
from nas.tasks.types.language_modeling import CONTEXT, LanguageModeling

if TYPE_CHECKING:
    from datasets import Dataset

    from nas.tasks.losses import LogitsAndLabels

ROUTER_LOSS = "aux_loss"
"""Output of a model with experts whose config asks for the loss of its router."""


class TextGeneration(LanguageModeling):
    """Every token of a block except the first is predicted from the tokens before it.

    Held-out blocks may overlap (``task.stride``); then only the tokens after the overlap are scored. Tasks of lm-eval
    may stand beside the texts.
    """

    strides = True
    reads_blocks = True

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        sources = harness_sources(self.task.metrics)
        self.harness = [HarnessQuestions(inputs, source, named) for source, named in sources.items()]

    @property
    def beside(self) -> Sequence[TaskType]:
        """The tasks of lm-eval."""
        return self.harness

    @property
    def beside_search(self) -> Sequence[TaskType]:
        """The tasks of lm-eval: they have other questions for the search."""
        return self.harness

    def metric(self, name: str) -> Metric:
        """Returns a metric by name, one of lm-eval too."""
        questions = next((each for each in self.harness if name in each.metrics), None)
        return super().metric(name) if questions is None else questions.metric(name)

    def collate(self, rows: list[Row]) -> Batch:
        """Pads blocks to the longest one; the model itself shifts the labels, and no token sees those after it."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        blocks = [torch.tensor(row["input_ids"]) for row in rows]
        ids, labels = (pad_sequence(blocks, True, value) for value in (self.processor.pad_token_id, IGNORE_INDEX))
        for row, scored in zip(rows, labels, strict=True):
            scored[: row.get(CONTEXT, 0)] = IGNORE_INDEX
        return {"input_ids": ids, "labels": labels}

    def forward(self, model: Any, batch: Batch, **kwargs: Any) -> Any:
        """Runs a model on a batch; its loss is computed here, a few tokens at a time."""
        from nas.tasks.losses import next_token_loss

        outputs = model(**model_inputs(batch), **kwargs)
        outputs.loss = next_token_loss(outputs.logits, batch["labels"])
        if outputs.get(ROUTER_LOSS) is not None:
            outputs.loss = outputs.loss + self.config.router_aux_loss_coef * outputs[ROUTER_LOSS]
        return outputs

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Returns the logits (examples, tokens - 1, vocabulary) and the labels of the next tokens."""
        return [(outputs.logits[:, :-1], batch["labels"][:, 1:])]

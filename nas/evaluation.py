"""Quality: what a model scores on a fixed set of examples, with a standard error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nas.supernet import evaluating

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled examples, collated once, in batches of similar length so that little is spent on padding.

    Attributes:
        batches: Model inputs without labels.
        labels: (examples,) class ids, in the order of the batches.
    """

    batches: tuple[Mapping[str, torch.Tensor], ...]
    labels: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset, collate: Callable[[list[Any]], Mapping[str, Any]], batch_size: int) -> EvaluationSet:
        """Collates a processed dataset."""
        rows = sorted((dataset[i] for i in range(len(dataset))), key=lambda row: len(row.get("input_ids", ())))
        batches, labels = [], []
        for start in range(0, len(rows), batch_size):
            batch = dict(collate(rows[start : start + batch_size]))
            labels.append(batch.pop("labels").numpy())
            batches.append(batch)
        return cls(tuple(batches), np.concatenate(labels))

    def __len__(self) -> int:
        return len(self.labels)

    def labelled_batches(self, examples: int) -> list[dict[str, torch.Tensor]]:
        """Whole batches with their labels, evenly spread over the set, of about so many examples."""
        size = len(next(iter(self.batches[0].values())))
        wanted = max(1, min(len(self.batches), examples // size))
        starts = np.cumsum([0] + [len(next(iter(b.values()))) for b in self.batches])
        chosen = np.linspace(0, len(self.batches) - 1, wanted).round().astype(int)
        return [
            {**self.batches[i], "labels": torch.from_numpy(self.labels[starts[i] : starts[i + 1]])} for i in chosen
        ]


@dataclass(frozen=True)
class Score:
    """A quality and its standard error."""

    value: float
    standard_error: float


def logits_of(model: PreTrainedModel, examples: EvaluationSet) -> np.ndarray:
    """Class scores (examples, classes) of a model, float64."""
    with evaluating(model):
        out = [model(**{k: v.to(model.device) for k, v in batch.items()}).logits.cpu() for batch in examples.batches]
    return torch.cat(out).double().numpy()


def score(model: PreTrainedModel, examples: EvaluationSet, names: Sequence[str]) -> dict[str, Score]:
    """Several qualities of a model from one pass over the examples."""
    logits = logits_of(model, examples)
    return {name: _with_error(METRICS[name], examples.labels, logits) for name in names}


def _accuracy(labels: np.ndarray, logits: np.ndarray) -> float:
    return float((logits.argmax(1) == labels).mean())


def _loss(labels: np.ndarray, logits: np.ndarray) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]).mean())


def _f1(labels: np.ndarray, logits: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    average = "binary" if logits.shape[1] == 2 else "macro"
    return float(f1_score(labels, logits.argmax(1), average=average))


def _matthews_correlation(labels: np.ndarray, logits: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, logits.argmax(1)))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews_correlation,
    "loss": _loss,
}
"""Quality name -> function of labels (n,) and class scores (n, classes)."""


def _with_error(metric: Callable[..., float], labels: np.ndarray, logits: np.ndarray, resamples: int = 200) -> Score:
    """The metric and its bootstrap standard error (Efron 1979), the same resamples for every model."""
    rng = np.random.default_rng(0)
    draws = [metric(labels[rows], logits[rows]) for rows in rng.integers(0, len(labels), (resamples, len(labels)))]
    return Score(metric(labels, logits), float(np.std(draws, ddof=1)))

"""Metrics: compute a number from statistics of each example."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from search_spaces import InputError

ExampleStats = Mapping[str, np.ndarray]
"""Name -> a statistic of each example, array (examples, ...): ``labels``, ``predictions``, ``loss`` and others."""

Metric = Callable[[ExampleStats], float]


class MetricError(InputError):
    """A metric of the user's own raised an exception."""


class NotFiniteError(InputError):
    """A metric of the user's own returned no finite number."""


def ratio_of_sums(total: str, count: str) -> Metric:
    """Returns a metric that divides the sum of one statistic by the sum of another, such as loss by tokens."""
    return lambda stats: float(stats[total].sum() / max(stats[count].sum(), 1))


def mean_of(name: str) -> Metric:
    """Returns a metric that is the mean of a statistic over the examples."""
    return lambda stats: float(stats[name].mean())


def perplexity(stats: ExampleStats) -> float:
    """Exponential of the mean loss per token."""
    return math.exp(min(ratio_of_sums("loss", "n_scored")(stats), 700.0))


def bits_per_byte(stats: ExampleStats) -> float:
    """Bits that a model needs for a byte of text, from its mean loss per token: it compares between tokenizers."""
    tokens_per_byte = ratio_of_sums("n_tokens", "n_bytes")(stats)
    return ratio_of_sums("loss", "n_scored")(stats) * tokens_per_byte / math.log(2)


def f1_of_counts(correct: str, predicted: str, actual: str) -> Metric:
    """Returns the F1 over all decisions, from three statistics that count them in each example."""

    def compute(stats: ExampleStats) -> float:
        total = stats[predicted].sum() + stats[actual].sum()
        return float(2 * stats[correct].sum() / total) if total else 1.0

    return compute


micro_f1 = f1_of_counts("true_positives", "predicted_positives", "actual_positives")
"""F1 over all decisions: classes of an example, or tags of words."""

entity_f1 = f1_of_counts("correct_entities", "predicted_entities", "actual_entities")
"""F1 over entities, which are correct only as a whole, as seqeval computes it."""


def accuracy(stats: ExampleStats) -> float:
    """Share of examples of which all labels are correct."""
    same = stats["labels"] == stats["predictions"]
    return float(same.reshape(len(same), -1).all(1).mean())


@dataclass(frozen=True)
class OfClasses:
    """A metric of classes that is undefined on examples without one of them.

    Attributes:
        compute: The metric.
        counts_predictions: Whether classes that are predicted, but no label, count too.
    """

    compute: Metric
    counts_predictions: bool = True

    def __call__(self, stats: ExampleStats) -> float:
        """Computes the metric over the classes that occur."""
        return self.compute(stats)

    def is_defined(self, stats: ExampleStats, draws: np.ndarray) -> np.ndarray:
        """Whether the classes of all examples occur in each of some resamples (samples, examples)."""
        labels, predictions = stats["labels"], stats["predictions" if self.counts_predictions else "labels"]
        is_label = np.isin(np.arange(int(max(labels.max(), predictions.max())) + 1), labels)
        others = np.flatnonzero(~is_label & np.isin(np.arange(len(is_label)), predictions))
        counts = [np.bincount(labels[rows], minlength=len(is_label))[is_label].min() for rows in draws]
        predicted = [np.isin(others, predictions[rows]).all() for rows in draws] if len(others) else True
        return (np.array(counts) > 0) & predicted


def class_counts(stats: ExampleStats) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts the correct predictions, the labels and the predictions of each class, three arrays (classes,)."""
    labels, predictions = stats["labels"], stats["predictions"]
    n_classes = int(max(labels.max(), predictions.max())) + 1
    correct = labels[labels == predictions]
    hits, actual, predicted = (np.bincount(ids, minlength=n_classes) for ids in (correct, labels, predictions))
    return hits, actual, predicted


def _f1_of_each_class(stats: ExampleStats) -> np.ndarray:
    """F1 of the classes that occur in the labels or predictions."""
    hits, actual, predicted = class_counts(stats)
    occurs = actual + predicted > 0
    return 2 * hits[occurs] / (actual + predicted)[occurs]


def _f1_of_second(stats: ExampleStats) -> float:
    hits, actual, predicted = class_counts(stats)
    return float(2 * hits[1] / (actual[1] + predicted[1])) if len(hits) > 1 else 0.0


macro_f1 = OfClasses(lambda stats: float(_f1_of_each_class(stats).mean()))
"""Mean F1 of all classes."""

binary_f1 = OfClasses(_f1_of_second)
"""F1 of the second of two classes."""


def _mean_iou(stats: ExampleStats) -> float:
    both = stats["correct_pixels"].sum(0)
    union = stats["labelled_pixels"].sum(0) + stats["predicted_pixels"].sum(0) - both
    return float((both / np.maximum(union, 1))[union > 0].mean()) if union.any() else 0.0


@dataclass(frozen=True)
class OfPixels(OfClasses):
    """A metric of the classes of pixels; an image has several."""

    def is_defined(self, stats: ExampleStats, draws: np.ndarray) -> np.ndarray:
        """Whether the classes of all images occur in each of some resamples (samples, images)."""
        occurs = stats["labelled_pixels"] + stats["predicted_pixels"] > 0
        return np.array([(occurs[rows].any(0) == occurs.any(0)).all() for rows in draws])


mean_iou = OfPixels(_mean_iou)
"""Mean over classes of the pixels that are labelled and predicted over those that are one of them."""


def matthews_correlation(stats: ExampleStats) -> float:
    """Matthews correlation coefficient of classes (Gorodkin 2004); 0 if one class has all labels or predictions."""
    hits, actual, predicted = (counts.astype(float) for counts in class_counts(stats))
    total = actual.sum()
    covariance = hits.sum() * total - actual @ predicted
    scale = (total**2 - actual @ actual) * (total**2 - predicted @ predicted)
    return float(covariance / math.sqrt(scale)) if scale else 0.0


def _roc_auc(stats: ExampleStats) -> float:
    """Mean over the classes of the probability that an example of the class is ranked above one of another class."""
    labels, probabilities = stats["labels"], stats["probabilities"]
    occur = np.unique(labels)
    if len(occur) < 2:
        raise InputError("`roc_auc` must have examples of two classes, but all have one; take more examples.")
    areas = []
    for number in [1] if probabilities.shape[1] == 2 else occur:
        scores, of_class = probabilities[:, number], labels == number
        positives, negatives = scores[of_class], np.sort(scores[~of_class])
        below, not_above = (np.searchsorted(negatives, positives, side) for side in ("left", "right"))
        areas.append((below + not_above).mean() / (2 * len(negatives)))
    return float(np.mean(areas))


roc_auc = OfClasses(_roc_auc, counts_predictions=False)
"""Area under the ROC curve of the second of two classes; of more, the mean over each against all others."""


def top5_accuracy(stats: ExampleStats) -> float:
    """Share of examples whose label is among the five most probable classes."""
    return float((stats["better_classes"] < 5).mean())


def pearsonr(stats: ExampleStats) -> float:
    """Pearson correlation of numbers; 0 if all predictions are equal."""
    x, y = stats["labels"] - stats["labels"].mean(), stats["predictions"] - stats["predictions"].mean()
    scale = math.sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / scale) if scale else 0.0


def spearmanr(stats: ExampleStats) -> float:
    """Spearman rank correlation of numbers; 0 if all predictions are equal."""
    from scipy.stats import rankdata

    return pearsonr({name: rankdata(stats[name]) for name in ("labels", "predictions")})


def mean_absolute_error(stats: ExampleStats) -> float:
    """Mean absolute difference between predictions and labels."""
    return float(np.abs(stats["labels"] - stats["predictions"]).mean())


def r2(stats: ExampleStats) -> float:
    """Coefficient of determination: the share of the variance that the predictions explain."""
    labels, errors = stats["labels"], stats["labels"] - stats["predictions"]
    variance, rest = float(((labels - labels.mean()) ** 2).sum()), float((errors**2).sum())
    return 1.0 - rest / variance if variance else float(rest == 0)


def object_array(values: list[Any]) -> np.ndarray:
    """Returns an object array (examples,) of texts, lists or arrays."""
    out = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        out[index] = value
    return out

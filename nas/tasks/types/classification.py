"""Classification of texts and images: one label per example, several labels, or a number (regression)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, softmax

from nas.recipe.schema import ProblemType
from nas.tasks import metrics
from nas.tasks.batches import Batch, Row, model_inputs
from nas.tasks.data import require_column
from nas.tasks.labels import (
    JOINED,
    has_ids,
    infer_problem_type,
    is_list,
    is_multi_hot,
    join_label_columns,
    match_head_labels,
    multi_hot_to_ids,
    relabel,
    require_different,
    with_class_ids,
    with_float_labels,
)
from nas.tasks.metrics import ExampleStats, Metric
from nas.tasks.types.base import TaskInputs, TaskType
from search_spaces import InputError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel

    from nas.tasks.losses import Activation, LogitsAndLabels

LOSS_METRIC = {"loss": metrics.ratio_of_sums("loss", "n_scored")}
METRICS: dict[ProblemType, dict[str, Metric]] = {
    "single_label_classification": {
        "accuracy": metrics.accuracy,
        "f1": metrics.macro_f1,
        "roc_auc": metrics.roc_auc,
        "top5_accuracy": metrics.top5_accuracy,
        "matthews_correlation": metrics.matthews_correlation,
        **LOSS_METRIC,
    },
    "multi_label_classification": {"f1": metrics.micro_f1, "accuracy": metrics.accuracy, **LOSS_METRIC},
    "regression": {
        "pearsonr": metrics.pearsonr,
        "spearmanr": metrics.spearmanr,
        "mean_squared_error": LOSS_METRIC["loss"],
        "mean_absolute_error": metrics.mean_absolute_error,
        "r2": metrics.r2,
        **LOSS_METRIC,
    },
}
"""Problem type -> its metrics; of two classes, ``f1`` is that of the second.

With several labels per example, ``f1`` is the micro F1 over all decisions, and ``accuracy`` the share of examples of
which all labels are correct.
"""

ACTIVATIONS: dict[ProblemType, Activation] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "identity",
}


class Classification(TaskType):
    """The common part of text and image classification: labels, problem type and metrics."""

    problem_type: ProblemType
    label: str

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        train, test, self.label = _label_column(inputs, train, test)
        self.train, self.test = train, test
        self.problem_type = _choose_problem_type(inputs, train, self.label)
        self.activation = ACTIVATIONS[self.problem_type]
        if self.problem_type == "regression":
            self.train = with_float_labels(train, self.label, self.task.train)
            require_different(self.train, self.label, self.task.train)
            self.test = with_float_labels(test, self.label, self.task.test)
            self.names = inputs.head_names or ["LABEL_0"]
            return
        if self.problem_type == "multi_label_classification":
            train, test = _class_lists(inputs, train, test, self.label)
        self.train, self.test, self.names = with_class_names(inputs, train, test, self.label)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics of the problem type."""
        table = METRICS[self.problem_type]
        is_binary = self.problem_type == "single_label_classification" and len(self.names) == 2
        return {**table, "f1": metrics.binary_f1} if is_binary else table

    def logits(self, outputs: Any) -> torch.Tensor:
        """The logits (examples, classes), or (examples, 1) for a regression."""
        logits: torch.Tensor = outputs.logits
        return logits

    def logits_and_labels(self, outputs: Any, batch: Batch) -> list[LogitsAndLabels]:
        """Returns the logits and the labels."""
        labels = batch["labels"]
        return [(self.logits(outputs), labels[:, None] if self.problem_type == "regression" else labels)]

    def example_stats(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], metric_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns labels, predictions, probabilities and losses of each example."""
        from nas.tasks.losses import loss_by_example

        outputs = model(**model_inputs(batch))
        loss, n_scored = loss_by_example(self.logits_and_labels(outputs, batch), self.activation)
        logits, labels = self.logits(outputs).double().cpu().numpy(), batch["labels"].cpu().numpy()
        common = {
            "labels": labels,
            "loss": loss.double().cpu().numpy(),
            "n_scored": n_scored.cpu().numpy(),
        }
        return {**common, **PREDICTIONS[self.problem_type](labels, logits)}


def targets(labels: list[Any], problem_type: ProblemType, classes: int) -> list[Any]:
    """Converts labels to targets of the model's loss: class ids, multi-hot floats, or numbers."""
    if problem_type != "multi_label_classification":
        return labels
    return [[float(k in row) for k in range(classes)] for row in labels]


def _class_predictions(labels: np.ndarray, logits: np.ndarray) -> ExampleStats:
    better = (logits > np.take_along_axis(logits, labels[:, None], 1)).sum(1)
    return {"predictions": logits.argmax(1), "probabilities": softmax(logits, 1), "better_classes": better}


def _label_set_predictions(labels: np.ndarray, logits: np.ndarray) -> ExampleStats:
    predicted, true = logits > 0, labels > 0
    counts = {"true_positives": predicted & true, "predicted_positives": predicted, "actual_positives": true}
    common = {"predictions": predicted.astype(int), "probabilities": expit(logits)}
    return {**common, **{name: count.sum(1) for name, count in counts.items()}}


def _value_predictions(labels: np.ndarray, logits: np.ndarray) -> ExampleStats:
    return {"predictions": logits[:, 0]}


PREDICTIONS = {
    "single_label_classification": _class_predictions,
    "multi_label_classification": _label_set_predictions,
    "regression": _value_predictions,
}


def with_class_names(
    inputs: TaskInputs, train: Dataset, test: Dataset, label: str
) -> tuple[Dataset, Dataset, list[str]]:
    """Casts the labels of both splits to class ids; a trained head keeps its own names and ids.

    Returns:
        The training split, the test split, and the class names.
    """
    task, raw = inputs.settings, train
    train, names = with_class_ids(train, label, None, task.train)
    test, _ = with_class_ids(test, label, names, task.test)
    head = inputs.head_names
    if head is None:
        return train, test, names
    order = match_head_labels(names, head, inputs.model, has_ids(raw, label))
    train, test = (relabel(split, label, order.__getitem__, head) for split in (train, test))
    return train, test, head


def _label_column(inputs: TaskInputs, train: Dataset, test: Dataset) -> tuple[Dataset, Dataset, str]:
    """Both splits with their label column: that of the recipe, one joined from several, else `label` or `labels`."""
    task, label = inputs.settings, inputs.settings.label
    if isinstance(label, list):
        single = task.problem_type == "single_label_classification"
        train = join_label_columns(train, label, single=single, source=task.train)
        return train, join_label_columns(test, label, single=single, source=task.test), JOINED
    usual = "labels" if {"label", "labels"} & {*train.column_names} == {"labels"} else "label"
    return train, test, label or usual


def _choose_problem_type(inputs: TaskInputs, train: Dataset, label: str) -> ProblemType:
    """Chooses the problem type: of the recipe, else of the data, else of the head, else single-label."""
    task = inputs.settings
    inferred = infer_problem_type(train, label, task.train)
    is_certain = inferred in ("multi_label_classification", "regression")
    if task.problem_type and is_certain and task.problem_type != inferred:
        raise InputError(
            f"`task.problem_type` must fit the labels, but it is {task.problem_type}, and `{label}` of `{task.train}` "
            f"holds labels for {inferred}; remove it, or name another column in `task.label`."
        )
    one_output = inferred is None and inputs.head_names is not None and len(inputs.head_names) == 1
    return task.problem_type or inferred or ("regression" if one_output else "single_label_classification")


def _class_lists(inputs: TaskInputs, train: Dataset, test: Dataset, label: str) -> tuple[Dataset, Dataset]:
    """Checks that the labels of both splits are lists, and converts multi-hot lists to lists of ids."""
    task = inputs.settings
    for split, source in ((train, task.train), (test, task.test)):
        require_column(split, label, source, "task.label")
        if not is_list(split.features[label]):
            raise InputError(
                f"labels must be lists of classes in both splits, but `{label}` of `{source}` is "
                f"{split.features[label]}; name another column in `task.label`."
            )
    if not is_multi_hot(train, label):
        return train, test
    classes = len(train[0][label])
    return multi_hot_to_ids(train, label, classes, task.train), multi_hot_to_ids(test, label, classes, task.test)

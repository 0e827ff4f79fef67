"""Classification of whole examples: one class each, any number of classes, or a number (regression)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.recipe.schema import ProblemType
from nas.tasks import metrics
from nas.tasks.batches import Batch, Row, model_inputs
from nas.tasks.data import need_column
from nas.tasks.labels import (
    has_ids,
    head_order,
    is_list,
    is_multi_hot,
    problem_type_of,
    relabelled,
    with_class_ids,
    with_numbers,
    without_multi_hot,
)
from nas.tasks.metrics import Found, Metric
from nas.tasks.types.base import TaskInputs, TaskType
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from nas.tasks.losses import Activation, Scored

LOSS = {"loss": metrics.mean_of("loss", "scored")}
METRICS: dict[ProblemType, dict[str, Metric]] = {
    "single_label_classification": {
        "accuracy": metrics.accuracy,
        "f1": metrics.f1,
        "matthews_correlation": metrics.matthews_correlation,
        **LOSS,
    },
    "multi_label_classification": {"f1": metrics.micro_f1, "accuracy": metrics.accuracy, **LOSS},
    "regression": {
        "pearsonr": metrics.pearsonr,
        "spearmanr": metrics.spearmanr,
        "mean_squared_error": LOSS["loss"],
        "mean_absolute_error": metrics.mean_absolute_error,
        "r2": metrics.r2,
        **LOSS,
    },
}
"""Problem type -> its qualities. With several labels a row, ``f1`` is that of all decisions together (micro) and
``accuracy`` the share of rows whose every label is right."""

ACTIVATIONS: dict[ProblemType, Activation] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "identity",
}


class Classification(TaskType):
    """What texts and images have in common: labels, their problem type and their qualities."""

    problem_type: ProblemType

    def __init__(self, inputs: TaskInputs, train: Dataset, test: Dataset) -> None:
        super().__init__(inputs, train, test)
        self.label = self.task.label or "label"
        self.problem_type = _problem_type(inputs, train, self.label)
        self.activation = ACTIVATIONS[self.problem_type]
        if self.problem_type == "regression":
            self.train = with_numbers(train, self.label, self.task.train)
            self.test = with_numbers(test, self.label, self.task.test)
            self.names = inputs.head_names or ["LABEL_0"]
            return
        if self.problem_type == "multi_label_classification":
            train, test = _class_lists(inputs, train, test, self.label)
        self.train, self.test, self.names = with_class_names(inputs, train, test, self.label)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Those of the problem type."""
        return METRICS[self.problem_type]

    def scored(self, outputs: Any, batch: Batch) -> list[Scored]:
        """The class scores (examples, classes); of a regression, a number (examples, 1)."""
        labels = batch["labels"]
        return [(outputs.logits, labels[:, None] if self.problem_type == "regression" else labels)]

    def found(
        self, model: PreTrainedModel, batch: Batch, rows: Sequence[list[Row]], wanted: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Labels, logits in float64, predictions and losses."""
        from nas.tasks.losses import loss_by_example

        outputs = model(**model_inputs(batch))
        loss, scored = loss_by_example(self.scored(outputs, batch), self.activation)
        logits, labels = outputs.logits.double().cpu().numpy(), batch["labels"].cpu().numpy()
        common = {
            "labels": labels,
            "logits": logits,
            "loss": loss.double().cpu().numpy(),
            "scored": scored.cpu().numpy(),
        }
        return {**common, **PREDICTIONS[self.problem_type](labels, logits)}


def targets(labels: list[Any], problem_type: ProblemType, classes: int) -> list[Any]:
    """What a model's loss takes of a label column: class ids, 0 or 1 of each class, or numbers."""
    if problem_type != "multi_label_classification":
        return labels
    return [[float(k in row) for k in range(classes)] for row in labels]


def _classes(labels: np.ndarray, logits: np.ndarray) -> Found:
    return {"predictions": logits.argmax(1)}


def _sets(labels: np.ndarray, logits: np.ndarray) -> Found:
    found, true = logits > 0, labels > 0
    counts = {"hits": found & true, "guesses": found, "truths": true}
    return {"predictions": found.astype(int), **{name: count.sum(1) for name, count in counts.items()}}


def _values(labels: np.ndarray, logits: np.ndarray) -> Found:
    return {"predictions": logits[:, 0]}


PREDICTIONS = {
    "single_label_classification": _classes,
    "multi_label_classification": _sets,
    "regression": _values,
}


def with_class_names(
    inputs: TaskInputs, train: Dataset, test: Dataset, label: str
) -> tuple[Dataset, Dataset, list[str]]:
    """Both splits with class ids, and the class names; a trained head keeps its own names and ids."""
    task, raw = inputs.settings, train
    train, names = with_class_ids(train, label, None, task.train)
    test, _ = with_class_ids(test, label, names, task.test)
    head = inputs.head_names
    if head is None:
        return train, test, names
    order = head_order(names, head, inputs.model, has_ids(raw, label))
    train, test = (relabelled(split, label, order.__getitem__, head) for split in (train, test))
    return train, test, head


def _problem_type(inputs: TaskInputs, train: Dataset, label: str) -> ProblemType:
    """What the recipe says, else what the data says, else what the model's head says, else one class a row."""
    task = inputs.settings
    found = problem_type_of(train, label, task.train)
    clear = found in ("multi_label_classification", "regression")
    if task.problem_type and clear and task.problem_type != found:
        raise InputError(
            f"`task.problem_type` must fit the labels, but `{label}` of `{task.train}` is for {found}, not for "
            f"{task.problem_type}; leave it out, or name another column in `task.label`."
        )
    one_output = found is None and inputs.head_names is not None and len(inputs.head_names) == 1
    return task.problem_type or found or ("regression" if one_output else "single_label_classification")


def _class_lists(inputs: TaskInputs, train: Dataset, test: Dataset, label: str) -> tuple[Dataset, Dataset]:
    """Both splits with lists of classes as labels; lists of 0 and 1 become lists of ids."""
    task = inputs.settings
    for split, source in ((train, task.train), (test, task.test)):
        need_column(split, label, source, "task.label")
        if not is_list(split.features[label]):
            raise InputError(
                f"labels must be lists of classes in both splits, but `{label}` of `{source}` is "
                f"{split.features[label]}; name another column in `task.label`."
            )
    if not is_multi_hot(train, label):
        return train, test
    classes = len(train[0][label])
    return without_multi_hot(train, label, classes, task.train), without_multi_hot(test, label, classes, task.test)

"""Evaluation: scores a model on a fixed set of examples, with standard errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from nas.modeling.position_caches import fill_position_caches
from nas.runs.progress import print_line
from nas.tasks.batches import Batch, Row, model_inputs
from nas.tasks.bootstrap import SAMPLES, resampled
from nas.tasks.slices import fair_batches, slice_ends
from nas.tasks.types import TaskType
from predictors.measurement.halves import has_halves, in_own_dtype
from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled examples, collated once, in the order of `nas.tasks.slices.fair_batches`.

    Attributes:
        task: Computes the statistics of each example.
        collated: Model inputs with the labels of the data; labels that the recipe's model gives come when `batches` is
            first read.
        rows: For each batch, the rows of each of its examples (a long example may have several). They keep only the
            columns that predictions are compared with.
        beside: Sets of other tasks that are scored too; a metric that one of them has is computed on it.
    """

    task: TaskType
    collated: tuple[dict[str, torch.Tensor], ...]
    rows: tuple[Sequence[list[Row]], ...]
    beside: tuple[EvaluationSet, ...] = ()

    @classmethod
    def from_dataset(cls, dataset: Dataset, task: TaskType, batch_size: int | None = None) -> EvaluationSet:
        """Collates a processed dataset; every call gives the same batches.

        Rows that are computed when they are read, such as the pixels of an image, are read one batch at a time.
        """
        size, collate = batch_size or task.evaluation_batch_size, task.evaluation_collator()
        lengths, read = _examples(dataset, task)
        batches, rows = list[dict[str, torch.Tensor]](), list[Sequence[list[Row]]]()
        for numbers in fair_batches(lengths, size):
            group = [read(number) for number in numbers]
            batches.append(dict(collate([row for example in group for row in example])))
            rows.append([_reference_rows(example, task) for example in group])
        return cls(task, tuple(batches), tuple(rows))

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    @property
    def batches(self) -> tuple[Mapping[str, torch.Tensor], ...]:
        """Model inputs with labels."""
        with torch.inference_mode(False), torch.no_grad():  # training reads them too
            self.task.add_labels(self.collated)
        return self.collated

    def __getstate__(self) -> dict[str, Any]:
        """Has all labels: a process that only scores does not load the recipe's model."""
        return {**self.__dict__, "collated": self.batches}

    def take(self, examples: int) -> EvaluationSet:
        """Returns the first batches with about this many examples, at least one batch."""
        sizes = np.cumsum([len(group) for group in self.rows])
        count = max(1, int(np.abs(sizes - examples).argmin()) + 1)
        return replace(self, collated=self.collated[:count], rows=self.rows[:count])

    def labelled_batches(self, examples: int) -> list[dict[str, torch.Tensor]]:
        """Returns the batches of `take` as dicts."""
        return [dict(batch) for batch in self.take(examples).batches]


@dataclass(frozen=True)
class Score:
    """The value of a metric and its standard error.

    Attributes:
        value: On all examples.
        standard_error: The standard deviation of the resampled values.
        resampled: Values on resamples of the examples, the same ones for every model.
    """

    value: float
    standard_error: float
    resampled: tuple[float, ...] = field(default=(), repr=False, compare=False)


def score(model: PreTrainedModel, examples: EvaluationSet, names: Sequence[str]) -> dict[str, Score]:
    """Computes several metrics of a model in one pass over the examples, and over the sets beside them."""
    found: dict[str, Score] = {}
    for part in (*examples.beside, examples):
        missing = [name for name in names if name not in found and (part is examples or name in part.task.metrics)]
        if missing:
            stats = part.task.compare_examples(collect_stats(model, part, missing), missing)
            found |= _scores(part.task, stats, missing)
    return {name: found[name] for name in names}


def collect_stats(model: PreTrainedModel, examples: EvaluationSet, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Computes the statistics of each example that these metrics need, in the order of the batches."""
    parts = []
    with evaluation_mode(model):
        for batch, rows in zip(examples.batches, examples.rows, strict=True):
            parts.append(examples.task.example_stats(model, on_model(batch, model), rows, names))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def score_in_slices(
    model: PreTrainedModel, examples: EvaluationSet, names: Sequence[str], fractions: Sequence[float]
) -> Iterator[tuple[int, dict[str, Score]]]:
    """Computes metrics on growing slices of the examples; each batch runs once, the last slice is the full set.

    There are no slices if a metric compares the examples with each other, nor those on which one is undefined.

    Yields:
        The number of examples in the slice, and the scores on them.
    """
    parts: list[dict[str, np.ndarray]] = []
    count, start = len(examples.collated), 0
    if examples.task.whole_set_metrics & {*names}:
        fractions = ()
    for end in slice_ends(count, fractions):
        chunk = replace(examples, collated=examples.collated[start:end], rows=examples.rows[start:end])
        parts.append(collect_stats(model, chunk, names))
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        stats = examples.task.compare_examples(joined, names)
        start = end
        try:
            scores = _scores(examples.task, stats, names)
        except InputError:
            if end == count:
                raise
            continue  # a metric is undefined on the slice
        yield sum(map(len, examples.rows[:end])), scores


def _scores(task: TaskType, stats: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Score]:
    """Computes metrics and their standard errors from statistics of the examples."""
    scores = {}
    for name in names:
        value = task.metric(name)(stats)
        values = resampled(task.metric(name), stats)
        scores[name] = Score(value, float(np.std(values, ddof=1)), tuple(values))
        if len(values) < SAMPLES:
            _say_left_out(name)
    return scores


@cache
def _say_left_out(name: str) -> None:
    """Says once that a standard error leaves resamples out."""
    print_line(f"{name}: some resamples of the examples lack a class; its ± leaves them out")


def _examples(dataset: Dataset, task: TaskType) -> tuple[list[int], Callable[[int], list[Row]]]:
    """The length of each example, and a function that returns its rows by its number."""
    if dataset.format["type"] == "custom":  # computed when read: each row is an example
        return [0] * len(dataset), lambda number: [dataset[number]]
    examples = task.group_by_example(dataset[i] for i in range(len(dataset)))
    return [_num_tokens(example) for example in examples], examples.__getitem__


def _reference_rows(example: list[Row], task: TaskType) -> list[Row]:
    return [{name: row[name] for name in task.reference_columns} for row in example]


def _num_tokens(example: list[Row]) -> int:
    return max(len(row.get("input_ids", ())) for row in example)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Sets evaluation mode without gradients, and restores the previous mode on exit.

    The outputs are in float32 meanwhile, also those of a model in 16 bits: metrics need them.
    """
    was_training = model.training
    model.eval()
    fill_position_caches(model)
    handle = model.register_forward_hook(_float_outputs) if has_halves(model) else None
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
        if handle is not None:
            handle.remove()


def _float_outputs(model: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
    """Casts the floating-point outputs to float32."""
    for name, value in outputs.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            outputs[name] = value.float()
    return outputs


def on_model(batch: Batch, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The batch on the device of a model, its inputs in the model's dtype if that has 16 bits."""
    moved = {name: tensor.to(model.device) for name, tensor in batch.items()}
    return moved | in_own_dtype(model, model_inputs(moved))

"""Evaluation: scores a model on a fixed set of examples, with standard errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, overload

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


KEPT_BYTES = 2 * 2**30
"""Inputs of a set that stay in memory; of a larger one whose rows are computed when read, each batch is read anew."""


class ReadBatches(Sequence[dict[str, torch.Tensor]]):
    """Batches that are read and collated each time they are asked for.

    Args:
        read: Number of a batch -> its inputs.
        numbers: Which of them.
    """

    def __init__(self, read: Callable[[int], dict[str, torch.Tensor]], numbers: Sequence[int]) -> None:
        self.read, self.numbers = read, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> ReadBatches: ...
    def __getitem__(self, index: int | slice) -> dict[str, torch.Tensor] | ReadBatches:
        numbers = self.numbers[index]
        return self.read(numbers) if isinstance(numbers, int) else ReadBatches(self.read, numbers)


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
    collated: Sequence[dict[str, torch.Tensor]]
    rows: tuple[Sequence[list[Row]], ...]
    beside: tuple[EvaluationSet, ...] = ()

    @classmethod
    def from_dataset(cls, dataset: Dataset, task: TaskType, batch_size: int | None = None) -> EvaluationSet:
        """Collates a processed dataset; every call gives the same batches.

        Rows that are computed when they are read, such as the pixels of an image, are read one batch at a time; if
        all inputs take more than `KEPT_BYTES`, again in every pass.
        """
        size, collate = batch_size or task.evaluation_batch_size, task.evaluation_collator()
        lengths, read = _examples(dataset, task)
        groups, is_small = fair_batches(lengths, size), True
        batches, rows = list[dict[str, torch.Tensor]](), list[Sequence[list[Row]]]()

        def collated(group: Sequence[list[Row]]) -> dict[str, torch.Tensor]:
            return dict(collate([row for example in group for row in example]))

        for numbers in groups:
            group = [read(number) for number in numbers]
            rows.append([_reference_rows(example, task) for example in group])
            if is_small:
                batches.append(collated(group))
                is_small = not _is_computed(dataset) or len(groups) * _num_bytes(batches[0]) <= KEPT_BYTES
        again = ReadBatches(lambda batch: collated([read(number) for number in groups[batch]]), range(len(groups)))
        return cls(task, tuple(batches) if is_small else again, tuple(rows))

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    @property
    def batches(self) -> Sequence[Mapping[str, torch.Tensor]]:
        """Model inputs with labels."""
        with torch.inference_mode(False), torch.no_grad():  # training reads them too
            self.task.add_labels(self.collated)
        return self.collated

    def __getstate__(self) -> dict[str, Any]:
        """Has all labels: a process that only scores does not load the recipe's model."""
        return {**self.__dict__, "collated": tuple(self.batches)}

    def parts(self, names: Sequence[str]) -> list[tuple[EvaluationSet, list[str]]]:
        """The sets on which these metrics are computed, each with its own."""
        found, left = [], list(dict.fromkeys(names))
        for part in self.beside:
            own = [name for name in left if name in part.task.metrics]
            left = [name for name in left if name not in own]
            found += [(part, own)] if own else []
        return [*found, (self, left)] if left else found

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
    for part, own in examples.parts(names):
        stats = part.task.compare_examples(collect_stats(model, part, own), own)
        found |= _scores(part.task, stats, own)
    return {name: found[name] for name in names}


def collect_stats(model: PreTrainedModel, examples: EvaluationSet, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Computes the statistics of each example that these metrics need, in the order of the batches."""
    parts = []
    with evaluation_mode(model, in_float32=not examples.task.has_vocabulary_logits):
        for batch, rows in zip(examples.batches, examples.rows, strict=True):
            parts.append(examples.task.example_stats(model, on_model(batch, model), rows, names))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def score_in_slices(
    model: PreTrainedModel, examples: EvaluationSet, names: Sequence[str], fractions: Sequence[float]
) -> Iterator[tuple[int, dict[str, Score]]]:
    """Computes metrics on growing slices of the examples; each batch runs once, the last slice is the full set.

    There are no slices if a metric compares the examples with each other, nor those on which one is undefined. Sets
    beside the examples grow alike.

    Yields:
        The number of examples in the slice, and the scores on them.
    """
    parts = examples.parts(names)
    whole = any(part.task.whole_set_metrics & {*own} for part, own in parts)
    growing = [_GrowingSlice(model, part, own) for part, own in parts]
    counts = (len(part.collated) for part, _ in parts)
    ends = zip(*(slice_ends(count, () if whole else fractions) for count in counts), strict=True)
    for end in sorted({*ends}):
        stats = [each.grown_to(batches) for each, batches in zip(growing, end, strict=True)]
        is_complete = all(each.is_complete for each in growing)
        scores: dict[str, Score] = {}
        try:
            for each, of_part in zip(growing, stats, strict=True):
                scores |= _scores(each.examples.task, of_part, each.names)
        except InputError:
            if is_complete:
                raise
            continue  # a metric is undefined on the slice
        yield sum(each.size for each in growing), {name: scores[name] for name in names}


class _GrowingSlice:
    """Statistics of the first batches of a set, each computed once.

    Args:
        model: Computes them.
        examples: The set.
        names: The metrics.
    """

    def __init__(self, model: PreTrainedModel, examples: EvaluationSet, names: Sequence[str]) -> None:
        self.model, self.examples, self.names = model, examples, names
        self._stats: list[dict[str, np.ndarray]] = []
        self._end = 0

    @property
    def size(self) -> int:
        """Examples in the slice."""
        return sum(map(len, self.examples.rows[: self._end]))

    @property
    def is_complete(self) -> bool:
        """Whether the slice is the set."""
        return self._end == len(self.examples.collated)

    def grown_to(self, batches: int) -> Mapping[str, np.ndarray]:
        """Statistics of so many batches, at least as many as before."""
        if batches > self._end:
            chunk = slice(self._end, batches)
            added = replace(self.examples, collated=self.examples.collated[chunk], rows=self.examples.rows[chunk])
            self._stats.append(collect_stats(self.model, added, self.names))
            self._end = batches
        joined = {name: np.concatenate([part[name] for part in self._stats]) for name in self._stats[0]}
        return self.examples.task.compare_examples(joined, self.names)


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
    if _is_computed(dataset):  # each row is an example
        return [0] * len(dataset), lambda number: [dataset[number]]
    examples = task.group_by_example(dataset[i] for i in range(len(dataset)))
    return [_num_tokens(example) for example in examples], examples.__getitem__


def _is_computed(dataset: Dataset) -> bool:
    """Whether rows are computed when they are read, such as the pixels of an image."""
    return str(dataset.format["type"]) == "custom"


def _num_bytes(batch: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in batch.values())


def _reference_rows(example: list[Row], task: TaskType) -> list[Row]:
    return [{name: row[name] for name in task.reference_columns} for row in example]


def _num_tokens(example: list[Row]) -> int:
    return max(len(row.get("input_ids", ())) for row in example)


@contextmanager
def evaluation_mode(model: nn.Module, *, in_float32: bool = True) -> Iterator[None]:
    """Sets evaluation mode without gradients, and restores the previous mode on exit.

    Args:
        model: The model.
        in_float32: Whether its outputs are in float32 meanwhile, also those of a model in 16 bits: metrics need them,
            losses over a vocabulary cast a few logits at a time.
    """
    was_training = model.training
    model.eval()
    fill_position_caches(model)
    handle = model.register_forward_hook(_float_outputs) if in_float32 and has_halves(model) else None
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

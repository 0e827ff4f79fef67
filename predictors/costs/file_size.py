"""FileSizes: the exported ``model.safetensors`` of many subnetworks to the byte, header and rounded weights included.

Source: the safetensors format, github.com/huggingface/safetensors#format. Tensors lie in the file by type, then by
name, so those of a block follow each other, and a block differs in few ways; where they begin, and so how long the
header is, depends on all before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from predictors.costs.block_costs import Blocks, Shape, blocks_of_tensor, extracted_shapes
from predictors.costs.cost_table import cached_by_row, unique_rows
from search_spaces import Layout, SubnetBatch, SubnetConfig
from search_spaces.dimensions import BLOCKS, NO_BLOCK
from search_spaces.dimensions.bits import StoredTensor
from search_spaces.layout import OUTSIDE, is_under
from search_spaces.subnet import NUMERIC, SIZES

SHARED_BY_STACK: Blocks = ("leading",)
"""Stands for the modules of a first layer that serve its whole stack."""

TYPES = ("BOOL", "U8", "I8", "F16", "BF16", "F32", "I64")
"""Types in a file; tensors of the last stand first in it."""

EMPTY_HEADER_BYTES = len('{"__metadata__":{"format":"pt"}}')
POWERS = 10 ** np.arange(1, 19)


@dataclass(frozen=True)
class ParentTensor:
    """One tensor of the parent: its shape, its name in the file, the type of its numbers and their bytes.

    The file holds tensors of one name there as one, concatenated along their first dimension. ``disk_names`` has the
    names of its factors and of its rounded numbers as well, by what `Shapes.tensor_shapes` and
    `Shapes.stored_tensors` call them.
    """

    shape: Shape
    disk_names: Mapping[str, str]
    dtype: str
    itemsize: int


NameParts = tuple[str, str]
"""Of a tensor in the file: what stands before and after the number of its layer; outside layers all is before."""

RunKey = tuple[str, NameParts]
"""Tensors of a block that follow each other in the file: their type, and the first name that can be among them."""

TensorGroup = tuple[int, Blocks]
"""Tensors that depend on the same: the layer of the parent that they lie in, and their blocks."""

NO_LAYER: TensorGroup = (-1, ())
"""Those in no layer."""


@dataclass(frozen=True)
class _TensorRun:
    """What stands in one run: bytes up to the end of each tensor (k,), and its part of the header.

    That part lacks the digits of the layer's number, which every tensor has, and of where tensors begin and end.
    """

    ends: np.ndarray
    header: int


TensorRuns = Mapping[RunKey, _TensorRun]
EMPTY_RUN = _TensorRun(np.zeros(0, dtype=np.int64), 0)


@dataclass(frozen=True)
class _RunPosition:
    """A run in one place: its rank in the file, the digits of the number of its layer, and which span a file has.

    That is one of ``spans`` for each of n files: ``which`` (n,).
    """

    rank: tuple[int, str]
    digits: int
    runs: Sequence[_TensorRun]
    index: np.ndarray


@dataclass(frozen=True)
class FileSizes:
    """Sizes of the files of any subnetworks of one parent.

    Attributes:
        layout: Table of the parent.
        stored: Name -> each tensor that goes into the parent's file; tied ones once.
    """

    layout: Layout
    stored: Mapping[str, ParentTensor]
    _cache: dict[Any, TensorRuns] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, batch: SubnetBatch) -> np.ndarray:
        """Bytes of each file: (n,) whole numbers."""
        end, header = np.zeros(len(batch), dtype=np.int64), np.full(len(batch), EMPTY_HEADER_BYTES)
        digits = np.ones_like(end)
        for position in sorted(self._run_positions(batch), key=lambda position: position.rank):
            tensors, ends = (
                np.array([len(run.ends) for run in position.runs]),
                _padded([s.ends for s in position.runs]),
            )
            fixed = np.array([run.header for run in position.runs]) + position.digits * tensors
            header += fixed[position.index] + 2 * tensors[position.index] * digits
            start, end = end, end + ends.max(axis=1)[position.index]
            longer = np.flatnonzero(end >= POWERS[digits - 1])
            more = _num_digits(start[longer, None] + ends[position.index[longer]]) - digits[longer, None]
            header[longer] += 2 * more.sum(axis=1) - more.max(axis=1)
            digits[longer] += more.max(axis=1)
        return 8 + (header + 7) // 8 * 8 + end

    def _run_positions(self, batch: SubnetBatch) -> Iterator[_RunPosition]:
        """Every run in every place that it can stand in, in no order."""
        if not len(batch):
            return
        columns = [values[:, None] for values in batch.subnet_values.values()]
        columns += [batch.layer_values[name].max(axis=1, keepdims=True) for name in OUTSIDE]
        found, index = self._tensor_runs(batch, [NO_LAYER], columns)
        for (dtype, (name, _)), runs in _by_run_key(found):
            yield _RunPosition((-TYPES.index(dtype), name), 0, runs, index[:, 0])
        ends = np.cumsum([0, *self.layout.depths]).tolist()
        for layers in (range(*pair) for pair in pairwise(ends)):
            same, rows = unique_rows(list(batch.kept[:, layers].T))
            order = np.argsort(~batch.kept[rows][:, layers], axis=1, kind="stable")[same]
            for blocks in sorted({group[1] for group in self._names_by_group if group[0] in layers}):
                found, index = self._tensor_runs(batch, *self._depends_on(batch, layers, blocks))
                places = np.ascontiguousarray(np.take_along_axis(index, order, axis=1).T)
                for (dtype, (before, after)), runs in _by_run_key(found):
                    for k, here in enumerate(places):
                        yield _RunPosition((-TYPES.index(dtype), f"{before}{k}{after}"), len(str(k)), runs, here)

    def _depends_on(
        self, batch: SubnetBatch, layers: range, blocks: Blocks
    ) -> tuple[list[TensorGroup], list[np.ndarray]]:
        """The group of some blocks in each layer of a stack, and on what its tensors depend there.

        First on whether it has any, and on which layers differ.
        """
        if blocks == SHARED_BY_STACK:
            groups, has = [(layers[0], SHARED_BY_STACK)] * len(layers), self._owns_shared(batch, layers)
            values = [batch.layer_values[name][:, layers].max(axis=1, keepdims=True) for name in NUMERIC]
        else:
            groups, has = [(layer, blocks) for layer in layers], batch.kept[:, layers]
            names = (name for block in blocks for name in BLOCKS[block] if name in NUMERIC)
            values = [batch.layer_values[name][:, layers] for name in names]
        first = np.array([1 + self._first_alike.get(group, group)[0] for group in groups])
        sizes = [batch.subnet_values[name][:, None] for name in SIZES]
        return groups, [has * first, *sizes, *(batch.layer_values[name][:, layers] for name in NO_BLOCK), *values]

    def _owns_shared(self, batch: SubnetBatch, layers: range) -> np.ndarray:
        """Which layer of a stack has what serves all of it: the first that does not skip it (n, layers)."""
        place, has = self.layout.locate(self._names_by_group[layers[0], SHARED_BY_STACK][0]), batch.kept[:, layers]
        for block, modules in self.layout.family.stacks[place.stack or 0].skips.items():
            if is_under(place.path, modules):
                has = has & (batch.layer_values[BLOCKS[block][0]][:, layers] > 0)
        return has & (has.cumsum(axis=1) == 1)

    def _tensor_runs(
        self, batch: SubnetBatch, groups: Sequence[TensorGroup], columns: Sequence[np.ndarray]
    ) -> tuple[list[TensorRuns], np.ndarray]:
        """What some groups have in the files, and which of it each file has of each: (n, groups).

        Args:
            batch: The subnetworks.
            groups: Some.
            columns: All on which their tensors depend (n, groups); where the first is 0 there are none.
        """
        shape = len(batch), len(groups)

        def make(row: int) -> TensorRuns:
            names = self._names_by_group.get(groups[row % len(groups)], []) if flat[0][row] else []
            return self._group_into_runs(self._tensors_in_file(batch[row // len(groups)], names))

        flat = [np.broadcast_to(column, shape).reshape(-1) for column in columns]
        found, index = cached_by_row(self._cache, groups[0], flat, make)
        return found, index.reshape(shape)

    def _tensors_in_file(self, subnet: SubnetConfig, names: Sequence[str]) -> list[tuple[NameParts, StoredTensor]]:
        """Some of the parent's tensors as they lie in the file."""
        found = []
        for name, pieces in extracted_shapes(
            self.layout, subnet, {name: self.stored[name].shape for name in names}
        ).items():
            place, stored = self.layout.locate(name), self.stored[name]
            rounded = self.layout.shapes.stored_tensors(place, pieces, self.layout.bits_of(subnet, place))
            whole = {kind: (shape, stored.dtype, stored.itemsize) for kind, shape in pieces.items()}
            for kind, tensor in (rounded or whole).items():
                found.append((self._split_name(stored.disk_names[kind], place.layer), tensor))
        return found

    def _split_name(self, disk_name: str, layer: int | None) -> NameParts:
        """A name in the file without the number of a layer of the parent."""
        if layer is None:
            return disk_name, ""
        before, _, after = disk_name.partition(f".{self.layout.stack_of(layer)[1]}.")
        return f"{before}.", f".{after}"

    def _group_into_runs(self, files: Sequence[tuple[NameParts, StoredTensor]]) -> TensorRuns:
        """The span of each run; tensors of one name are one, as long as all of them."""
        found: dict[RunKey, dict[NameParts, StoredTensor]] = {}
        for name, (shape, dtype, itemsize) in files:
            run = found.setdefault((dtype, self._first_in_run[name]), {})
            if name in run:
                shape = (run[name][0][0] + shape[0], *shape[1:])
            run[name] = shape, dtype, itemsize
        return {run: _tensor_run({name: tensors[name] for name in sorted(tensors)}) for run, tensors in found.items()}

    @cached_property
    def _names_by_group(self) -> dict[TensorGroup, list[str]]:
        """Names of what is stored by the group that it is in."""
        found: dict[TensorGroup, list[str]] = {}
        for name in self.stored:
            place, group = self.layout.locate(name), NO_LAYER
            if place.layer is not None:
                group = (
                    place.layer,
                    SHARED_BY_STACK
                    if self.layout.is_shared_by_first_layer(place)
                    else blocks_of_tensor(self.layout, place),
                )
            found.setdefault(group, []).append(name)
        return found

    @cached_property
    def _first_in_run(self) -> dict[NameParts, NameParts]:
        """Each name that can be in a file -> the first name of its run."""
        group_of = {
            self._split_name(new, self.layout.locate(name).layer): group
            for group, names in self._names_by_group.items()
            for name in names
            for new in self.stored[name].disk_names.values()
        }
        runs = groupby(sorted(group_of), key=lambda name: (name[0], group_of[name][1]))
        return {name: run[0] for run in (list(names) for _, names in runs) for name in run}

    @cached_property
    def _first_alike(self) -> dict[TensorGroup, TensorGroup]:
        """Each group -> the first one whose tensors differ from its own in the number of the layer only."""
        first: dict[Any, TensorGroup] = {}
        return {
            group: first.setdefault((group[1], *map(self._tensor_identity, names)), group)
            for group, names in self._names_by_group.items()
        }

    def _tensor_identity(self, name: str) -> tuple[Any, ...]:
        """A tensor of the parent, but for the number of its layer."""
        place, stored = self.layout.locate(name), self.stored[name]
        names = (self._split_name(new, place.layer) for new in stored.disk_names.values())
        return place.stack, place.path, stored.shape, stored.dtype, *names


def _by_run_key(found: Sequence[TensorRuns]) -> Iterator[tuple[RunKey, list[_TensorRun]]]:
    """Each run with its span in all of some groups."""
    for run in {run for runs in found for run in runs}:
        yield run, [runs.get(run, EMPTY_RUN) for runs in found]


def _tensor_run(tensors: Mapping[NameParts, StoredTensor]) -> _TensorRun:
    header = 0
    for (before, after), (shape, dtype, _) in tensors.items():
        sizes = ",".join(map(str, shape))
        header += len(f',"{before}{after}":{{"dtype":"{dtype}","shape":[{sizes}],"data_offsets":[,]}}')
    ends = np.cumsum([math.prod(shape) * itemsize for shape, _, itemsize in tensors.values()], dtype=np.int64)
    return _TensorRun(ends, header)


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of any lengths, filled up with zeros."""
    table = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for filled, row in zip(table, rows, strict=True):
        filled[: len(row)] = row
    return table


def _num_digits(numbers: np.ndarray) -> np.ndarray:
    return 1 + np.searchsorted(POWERS, numbers, side="right")

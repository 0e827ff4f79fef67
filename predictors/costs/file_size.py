"""FileSizes: exact sizes of the ``model.safetensors`` of many subnetworks, with headers and quantized weights.

Source: the safetensors format, github.com/huggingface/safetensors#format. Tensors in the file are sorted by dtype,
then by name. The tensors of a block are therefore consecutive, and each block has few variants. The offset of a
tensor, and so the length of the header, depends on all tensors before it.
"""

from __future__ import annotations

import math
import re
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
from search_spaces.layout import OUTSIDE, is_under
from search_spaces.module_kinds import StoredTensor
from search_spaces.subnet import NUMERIC, SIZES

SHARED_BY_STACK: Blocks = ("leading",)
"""Stands for the modules of a first layer that are shared by all layers of its stack."""

TYPES = ("BOOL", "U8", "I8", "F16", "BF16", "F32", "I64")
"""Dtypes in a file; tensors of the last one come first."""

EMPTY_HEADER_BYTES = len('{"__metadata__":{"format":"pt"}}')
POWERS = 10 ** np.arange(1, 19)


@dataclass(frozen=True)
class ParentTensor:
    """One tensor of the parent: its shape, names in the file, dtype and bytes per element.

    Tensors with the same name in the file are concatenated there along their first dimension. ``disk_names`` also has
    the names of its low-rank factors and quantized values, by the keys of `Shapes.tensor_shapes` and
    `Shapes.stored_tensors`. ``parts`` are the names of the matrices of each expert, expert by expert, where the file
    has one tensor for each.
    """

    shape: Shape
    disk_names: Mapping[str, str]
    dtype: str
    itemsize: int
    parts: tuple[str, ...] = ()

    def in_file(self, key: str, tensor: StoredTensor) -> list[tuple[str, StoredTensor]]:
        """Names and tensors in the file that one of `Shapes.stored_tensors` becomes."""
        if not self.parts:
            return [(self.disk_names[key], tensor)]
        (experts, rows, columns), dtype, itemsize = tensor
        copies = len(self.parts) // self.shape[0]
        part = (rows // copies, columns), dtype, itemsize
        return [(name, part) for name in self.parts[: experts * copies]]

    @property
    def names(self) -> list[str]:
        """Every name in the file that it can have."""
        return [*self.parts] or [*self.disk_names.values()]


NameParts = tuple[str, str]
"""Name of a tensor in the file, split before and after the index of its layer; outside layers (name, "")."""

RunKey = tuple[str, NameParts]
"""Key of consecutive tensors of a block in the file: their dtype, and the first name that can be among them."""

TensorGroup = tuple[int, Blocks]
"""Group of tensors that depend on the same fields: their layer of the parent, and their blocks."""

NO_LAYER: TensorGroup = (-1, ())
"""Group of the tensors outside the layers."""


@dataclass(frozen=True)
class _TensorRun:
    """Consecutive tensors: the offset of the end of each (k,) in bytes, and the bytes of their entries in the header.

    The entries do not include the digits of the layer index and of the data offsets.
    """

    ends: np.ndarray
    header: int


TensorRuns = Mapping[RunKey, _TensorRun]
EMPTY_RUN = _TensorRun(np.zeros(0, dtype=np.int64), 0)


@dataclass(frozen=True)
class _RunPosition:
    """A run at one position of the files: its sort key, the digits of its layer index, and its variants.

    ``index`` (n,) is the variant in each of n files.
    """

    sort_key: tuple[int, str]
    digits: int
    runs: Sequence[_TensorRun]
    index: np.ndarray


@dataclass(frozen=True)
class FileSizes:
    """Counts the file sizes of any subnetworks of one parent.

    Attributes:
        layout: Layout of the parent.
        stored: Name -> tensor, for all tensors in the parent's file; tied ones once.
    """

    layout: Layout
    stored: Mapping[str, ParentTensor]
    _cache: dict[Any, TensorRuns] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, batch: SubnetBatch) -> np.ndarray:
        """Bytes of each file: (n,) integers."""
        end, header = np.zeros(len(batch), dtype=np.int64), np.full(len(batch), EMPTY_HEADER_BYTES)
        digits = np.ones_like(end)
        for position in sorted(self._run_positions(batch), key=lambda position: position.sort_key):
            runs, index = position.runs, position.index
            n_tensors, ends = np.array([len(run.ends) for run in runs]), _padded([run.ends for run in runs])
            entries = np.array([run.header for run in runs]) + position.digits * n_tensors
            header += entries[index] + 2 * n_tensors[index] * digits
            start, end = end, end + ends.max(axis=1)[index]
            longer = np.flatnonzero(end >= POWERS[digits - 1])
            more = _num_digits(start[longer, None] + ends[index[longer]]) - digits[longer, None]
            header[longer] += 2 * more.sum(axis=1) - more.max(axis=1)
            digits[longer] += more.max(axis=1)
        return 8 + (header + 7) // 8 * 8 + end

    def _run_positions(self, batch: SubnetBatch) -> Iterator[_RunPosition]:
        """Yields all positions of all runs, in any order."""
        if not len(batch):
            return
        columns = [values[:, None] for values in batch.subnet_values.values()]
        columns += [batch.layer_values[name].max(axis=1, keepdims=True) for name in OUTSIDE]
        variants, index = self._tensor_runs(batch, [NO_LAYER], columns)
        for (dtype, (name, _)), runs in _by_run_key(variants):
            yield _RunPosition((-TYPES.index(dtype), name), 0, runs, index[:, 0])
        ends = np.cumsum([0, *self.layout.depths]).tolist()
        for layers in (range(*pair) for pair in pairwise(ends)):
            pattern, rows = unique_rows(list(batch.kept[:, layers].T))
            order = np.argsort(~batch.kept[rows][:, layers], axis=1, kind="stable")[pattern]
            for blocks in sorted({group[1] for group in self._names_by_group if group[0] in layers}):
                variants, index = self._tensor_runs(batch, *self._depends_on(batch, layers, blocks))
                by_layer = np.ascontiguousarray(np.take_along_axis(index, order, axis=1).T)
                for (dtype, (before, after)), runs in _by_run_key(variants):
                    for k, of_layer in enumerate(by_layer):
                        yield _RunPosition((-TYPES.index(dtype), f"{before}{k}{after}"), len(str(k)), runs, of_layer)

    def _depends_on(
        self, batch: SubnetBatch, layers: range, blocks: Blocks
    ) -> tuple[list[TensorGroup], list[np.ndarray]]:
        """The group of some blocks in each layer of a stack, and the columns that its tensors depend on.

        The first column is 0 where a layer has no such tensors; otherwise it tells apart layers that differ.
        """
        if blocks == SHARED_BY_STACK:
            groups, exists = [(layers[0], SHARED_BY_STACK)] * len(layers), self._owns_shared(batch, layers)
            values = [batch.layer_values[name][:, layers].max(axis=1, keepdims=True) for name in NUMERIC]
        else:
            groups, exists = [(layer, blocks) for layer in layers], batch.kept[:, layers]
            names = (name for block in blocks for name in BLOCKS[block] if name in NUMERIC)
            values = [batch.layer_values[name][:, layers] for name in names]
        first = np.array([1 + self._first_alike.get(group, group)[0] for group in groups])
        sizes = [batch.subnet_values[name][:, None] for name in SIZES]
        return groups, [exists * first, *sizes, *(batch.layer_values[name][:, layers] for name in NO_BLOCK), *values]

    def _owns_shared(self, batch: SubnetBatch, layers: range) -> np.ndarray:
        """Mask (n, layers) of the layer with the tensors shared by its stack: the first that does not skip them."""
        location = self.layout.locate(self._names_by_group[layers[0], SHARED_BY_STACK][0])
        exists = batch.kept[:, layers]
        for block, modules in self.layout.family.stacks[location.stack or 0].skips.items():
            if is_under(location.path, modules):
                exists = exists & (batch.layer_values[BLOCKS[block][0]][:, layers] > 0)
        return exists & (exists.cumsum(axis=1) == 1)

    def _tensor_runs(
        self, batch: SubnetBatch, groups: Sequence[TensorGroup], columns: Sequence[np.ndarray]
    ) -> tuple[list[TensorRuns], np.ndarray]:
        """The variants of the runs of some groups, and the index of the variant of each file and group (n, groups).

        Args:
            batch: The subnetworks.
            groups: Groups of tensors.
            columns: All columns (n, groups) that their tensors depend on; a group has no tensors if the first is 0.
        """
        shape = len(batch), len(groups)

        def make(row: int) -> TensorRuns:
            names = self._names_by_group.get(groups[row % len(groups)], []) if flat[0][row] else []
            return self._group_into_runs(self._tensors_in_file(batch[row // len(groups)], names))

        flat = [np.broadcast_to(column, shape).reshape(-1) for column in columns]
        variants, index = cached_by_row(self._cache, groups[0], flat, make)
        return variants, index.reshape(shape)

    def _tensors_in_file(self, subnet: SubnetConfig, names: Sequence[str]) -> list[tuple[NameParts, StoredTensor]]:
        """Tensors in the file that some of the parent's tensors become."""
        tensors, shapes = [], {name: self.stored[name].shape for name in names}
        for name, tensor_shapes in extracted_shapes(self.layout, subnet, shapes).items():
            location, stored = self.layout.locate(name), self.stored[name]
            blueprint = self.layout.blueprint_at(subnet, name)
            assert blueprint is not None
            unpacked = {key: (shape, stored.dtype, stored.itemsize) for key, shape in tensor_shapes.items()}
            for key, tensor in self.layout.shapes.stored_tensors(location, unpacked, blueprint).items():
                for disk_name, part in stored.in_file(key, tensor):
                    tensors.append((self._split_name(disk_name, location.layer), part))
        return tensors

    def _split_name(self, disk_name: str, layer: int | None) -> NameParts:
        """A name in the file, split at the index of a layer of the parent; a stage has a number before that."""
        if layer is None:
            return disk_name, ""
        stack = self.layout.family.stacks[self.layout.stack_of(layer)[0]]
        numbers_before = sum(part.isdigit() for part in stack.layers.split("."))
        index = [*re.finditer(r"\.(\d+)(?=\.)", disk_name)][numbers_before]
        return disk_name[: index.start(1)], disk_name[index.end(1) :]

    def _group_into_runs(self, tensors: Sequence[tuple[NameParts, StoredTensor]]) -> TensorRuns:
        """Groups tensors into runs; tensors with the same name are concatenated."""
        runs: dict[RunKey, dict[NameParts, StoredTensor]] = {}
        for name, (shape, dtype, itemsize) in tensors:
            run = runs.setdefault((dtype, self._first_in_run[name]), {})
            if name in run:
                shape = (run[name][0][0] + shape[0], *shape[1:])
            run[name] = shape, dtype, itemsize
        return {key: _tensor_run({name: run[name] for name in sorted(run)}) for key, run in runs.items()}

    @cached_property
    def _names_by_group(self) -> dict[TensorGroup, list[str]]:
        """Group -> names of its tensors."""
        names: dict[TensorGroup, list[str]] = {}
        for name in self.stored:
            location, group = self.layout.locate(name), NO_LAYER
            if location.layer is not None:
                is_shared = self.layout.is_shared_by_first_layer(location)
                group = location.layer, SHARED_BY_STACK if is_shared else blocks_of_tensor(self.layout, location)
            names.setdefault(group, []).append(name)
        return names

    @cached_property
    def _first_in_run(self) -> dict[NameParts, NameParts]:
        """Name that can be in a file -> first name of its run."""
        group_of = {
            self._split_name(new, self.layout.locate(name).layer): group
            for group, names in self._names_by_group.items()
            for name in names
            for new in self.stored[name].names
        }
        runs = groupby(sorted(group_of), key=lambda name: (name[0], group_of[name][1]))
        return {name: run[0] for run in (list(names) for _, names in runs) for name in run}

    @cached_property
    def _first_alike(self) -> dict[TensorGroup, TensorGroup]:
        """Group -> first group whose tensors differ from its own in the layer index only."""
        first: dict[Any, TensorGroup] = {}
        return {
            group: first.setdefault((group[1], *map(self._tensor_identity, names)), group)
            for group, names in self._names_by_group.items()
        }

    def _tensor_identity(self, name: str) -> tuple[Any, ...]:
        """Everything that identifies a tensor of the parent, except its layer index."""
        location, tensor = self.layout.locate(name), self.stored[name]
        names = (self._split_name(new, location.layer) for new in tensor.names)
        return location.stack, location.path, tensor.shape, tensor.dtype, *names


def _by_run_key(variants: Sequence[TensorRuns]) -> Iterator[tuple[RunKey, list[_TensorRun]]]:
    """Yields each run key with its run in all variants."""
    for key in {key for runs in variants for key in runs}:
        yield key, [runs.get(key, EMPTY_RUN) for runs in variants]


def _tensor_run(tensors: Mapping[NameParts, StoredTensor]) -> _TensorRun:
    header = 0
    for (before, after), (shape, dtype, _) in tensors.items():
        sizes = ",".join(map(str, shape))
        header += len(f',"{before}{after}":{{"dtype":"{dtype}","shape":[{sizes}],"data_offsets":[,]}}')
    ends = np.cumsum([math.prod(shape) * itemsize for shape, _, itemsize in tensors.values()], dtype=np.int64)
    return _TensorRun(ends, header)


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks rows of any length, padded with zeros."""
    table = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for filled, row in zip(table, rows, strict=True):
        filled[: len(row)] = row
    return table


def _num_digits(numbers: np.ndarray) -> np.ndarray:
    return 1 + np.searchsorted(POWERS, numbers, side="right")

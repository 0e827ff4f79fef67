"""FileSizes: the exported ``model.safetensors`` of many subnetworks to the byte, header and rounded weights included.

Source: the safetensors format, github.com/huggingface/safetensors#format. Tensors lie in the file by type, then by
name, so those of a layer follow each other; where they begin, and so how long the header is, depends on all before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from predictors.part_table import distinct
from predictors.parts import Shape, pieces_of
from search_spaces import Layout, SubnetBatch, SubnetConfig
from search_spaces.bits import InFile
from search_spaces.subnet import NAMED, OF_ALL, PER_LAYER

LEADING = -1
"""Stands for the modules of a first layer that serve its whole stack."""

TYPES = ("BOOL", "U8", "I8", "F16", "BF16", "F32", "I64")
"""Types in a file; tensors of the last stand first in it."""

HEADER = len('{"__metadata__":{"format":"pt"}}')
POWERS = 10 ** np.arange(1, 19)


@dataclass(frozen=True)
class Stored:
    """One tensor of the parent: its shape, its name in the file, the type of its numbers and their bytes.

    The file holds tensors of one name there as one, concatenated along their first dimension. ``disk_names`` has the
    names of its factors and of its rounded numbers as well, by what `Layout.pieces` and `stored_pieces` call them.
    """

    shape: Shape
    disk_names: Mapping[str, str]
    dtype: str
    itemsize: int


File = tuple[tuple[str, str], InFile]
"""A tensor in the file: what stands before and after the number of its layer in its name, and what it is."""

Run = tuple[str, str]
"""Tensors of a layer that follow each other in the file: their type, and what stands before the layer's number."""


@dataclass(frozen=True)
class _Span:
    """What a layer has in one run: bytes up to the end of each tensor (k,), and its part of the header.

    That part lacks the digits of the layer's number, which every tensor has, and of where tensors begin and end.
    """

    ends: np.ndarray
    header: int


NOTHING = _Span(np.zeros(0, dtype=np.int64), 0)


@dataclass(frozen=True)
class FileSizes:
    """Sizes of the files of any subnetworks of one parent.

    Attributes:
        layout: Table of the parent.
        stored: Name -> each tensor that goes into the parent's file; tied ones once.
    """

    layout: Layout
    stored: Mapping[str, Stored]
    _known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, batch: SubnetBatch) -> np.ndarray:
        """Bytes of each file: (n,) whole numbers."""
        sizes = np.zeros(len(batch), dtype=np.int64)
        if not len(batch):
            return sizes
        spans, codes = self._spans(batch)
        of_all = (getattr(batch, name) for name in OF_ALL)
        which, rows = distinct([*of_all, batch.widths["num_attention_heads"].max(axis=1)])
        for number, row in enumerate(rows):
            here = np.flatnonzero(which == number)
            sizes[here] = self._sizes(self._outer(batch[row]), spans, [of_stack[here] for of_stack in codes])
        return sizes

    def _sizes(
        self, outer: Mapping[Run, _Span], spans: Sequence[Mapping[Run, _Span]], codes: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Sizes of files whose tensors outside the layers are the same.

        Args:
            outer: Run of each tensor outside the layers -> its span.
            spans: What distinct layers have.
            codes: For each stack, which of them stands in each place (n, depth).
        """
        slots: list[tuple[int, str, Run, int | None, int]]
        slots = [(-TYPES.index(run[0]), run[1], run, None, 0) for run in outer]
        for stack, of_stack in enumerate(codes):
            runs = {run for code in np.unique(of_stack) for run in spans[code]}
            for run in runs:
                slots += [(-TYPES.index(run[0]), f"{run[1]}{k}.", run, stack, k) for k in range(of_stack.shape[1])]
        end, header = np.zeros(len(codes[0]), dtype=np.int64), np.full(len(codes[0]), HEADER)
        for _, _, run, of, place in sorted(slots, key=lambda slot: slot[:2]):
            found = [outer[run]] if of is None else [layer.get(run, NOTHING) for layer in spans]
            code = np.zeros(len(end), dtype=np.int64) if of is None else codes[of][:, place]
            tensors = np.array([len(span.ends) for span in found])
            taken = np.array([span.ends[-1] if len(span.ends) else 0 for span in found])[code]
            number = 0 if of is None else len(str(place))
            header += (np.array([span.header for span in found]) + number * tensors)[code]
            header += _digits_of_offsets(end, taken, found, tensors, code)
            end += taken
        return 8 + (header + 7) // 8 * 8 + end

    def _spans(self, batch: SubnetBatch) -> tuple[list[Mapping[Run, _Span]], list[np.ndarray]]:
        """What distinct layers have, the first one nothing, and which of them stands in each place of each stack."""
        spans: list[Mapping[Run, _Span]] = [{}]
        layers = np.zeros(batch.kept.shape, dtype=np.int64)
        leading = {name: self._leads(batch, name) for name in self._names[LEADING]}
        for layer in range(batch.kept.shape[1]):
            varies = (values[:, layer] for values in (batch.kept, *batch.widths.values(), *leading.values()))
            which, rows = distinct([batch.hidden_size, *varies])
            layers[:, layer] = which + len(spans)
            for row in rows:
                names = [name for name, lead in leading.items() if lead[row, layer]]
                spans.append(self._of_layer(batch[row], layer, names))
        codes = []
        for start, depth in zip(np.cumsum([0, *self.layout.depths]), self.layout.depths, strict=False):
            kept = batch.kept[:, start : start + depth]
            first = np.argsort(~kept, axis=1, kind="stable")
            stands = np.arange(depth) < kept.sum(axis=1, keepdims=True)
            codes.append(np.where(stands, np.take_along_axis(layers[:, start : start + depth], first, axis=1), 0))
        return spans, codes

    def _outer(self, subnet: SubnetConfig) -> Mapping[Run, _Span]:
        key = (*(getattr(subnet, name) for name in OF_ALL), max(subnet.num_attention_heads))
        if key not in self._known:
            self._known[key] = _by_run(self._files_of(subnet, self._names[None]))
        return self._known[key]

    def _of_layer(self, subnet: SubnetConfig, layer: int, leading: Sequence[str]) -> Mapping[Run, _Span]:
        if layer not in subnet.layers:
            return {}
        position = subnet.layers.index(layer)
        names = self._names.get(layer, [])
        if leading:
            return _by_run(self._files_of(subnet, [*names, *leading]))
        key = (self._alike[layer], subnet.hidden_size, *(getattr(subnet, name)[position] for name in PER_LAYER))
        if key not in self._known:
            self._known[key] = _by_run(self._files_of(subnet, names))
        return self._known[key]

    def _files_of(self, subnet: SubnetConfig, names: Sequence[str]) -> list[File]:
        """Some of the parent's tensors as they lie in the file."""
        found = []
        for name, pieces in pieces_of(self.layout, subnet, {name: self.stored[name].shape for name in names}).items():
            place, stored = self.layout.locate(name), self.stored[name]
            rounded = self.layout.stored_pieces(place, pieces, self.layout.bits_of(subnet, place))
            whole = {kind: (shape, stored.dtype, stored.itemsize) for kind, shape in pieces.items()}
            for kind, tensor in (rounded or whole).items():
                before, after = stored.disk_names[kind], ""
                if place.layer is not None:
                    number = f".{self.layout.stack_of(place.layer)[1]}."
                    before, _, after = before.partition(number)
                    before, after = f"{before}.", f".{after}"
                found.append(((before, after), tensor))
        return found

    def _leads(self, batch: SubnetBatch, name: str) -> np.ndarray:
        """Which layer has a module that serves its whole stack: the first that does not skip it.

        The module is as wide as the widest layer of the stack needs: numbers above 0 (n, layers), the same for the
        same widths; 0 in other layers.
        """
        place, holds = self.layout.locate(name), np.zeros(batch.kept.shape, dtype=bool)
        for layer in range(batch.kept.shape[1]):
            if self.layout.stack_of(layer)[0] == place.stack:
                widths = [batch.widths[n][:, layer] > 0 for n in ("num_attention_heads", "intermediate_size")]
                which, rows = distinct([batch.kept[:, layer], *widths])
                holds[:, layer] = np.array([self._holds(batch[row], layer, place) for row in rows])[which]
        stack = [self.layout.stack_of(layer)[0] == place.stack for layer in range(batch.kept.shape[1])]
        widest, _ = distinct([batch.widths[n][:, stack].max(axis=1) for n in PER_LAYER if n not in NAMED])
        return np.where(holds & (holds.cumsum(axis=1) == 1), 1 + widest[:, None], 0)

    def _holds(self, subnet: SubnetConfig, layer: int, place: Any) -> bool:
        return layer in subnet.layers and not self.layout.is_skipped(subnet, subnet.layers.index(layer), place)

    @cached_property
    def _alike(self) -> dict[int, int]:
        """Layer of the parent -> the first one whose tensors differ from its own in the number of the layer only."""
        first: dict[Any, int] = {}
        return {layer: first.setdefault(self._tensors(layer), layer) for layer in self.layout.parent.layers}

    def _tensors(self, layer: int) -> tuple[Any, ...]:
        """What a layer of the parent has in the file, but for its number."""
        stack, number = self.layout.stack_of(layer)
        named = [(self.layout.locate(name).path, self.stored[name]) for name in self._names.get(layer, [])]
        return stack, *(
            (path, one.shape, one.dtype, *(name.replace(f".{number}.", ".*.", 1) for name in one.disk_names.values()))
            for path, one in named
        )

    @cached_property
    def _names(self) -> dict[int | None, list[str]]:
        """Names of what is stored by the layer of the parent; None: in no layer, `LEADING`: in a first one."""
        found: dict[int | None, list[str]] = {None: [], LEADING: []}
        for name in self.stored:
            place = self.layout.locate(name)
            found.setdefault(LEADING if self.layout.is_leading(place) else place.layer, []).append(name)
        return found


def _by_run(files: Sequence[File]) -> Mapping[Run, _Span]:
    """The span of each run; tensors of one name are one, as long as all of them."""
    found: dict[Run, dict[str, InFile]] = {}
    for (before, after), (shape, dtype, itemsize) in files:
        run = found.setdefault((dtype, before), {})
        if after in run:
            shape = (run[after][0][0] + shape[0], *shape[1:])
        run[after] = shape, dtype, itemsize
    return {run: _span(run[1], {after: tensors[after] for after in sorted(tensors)}) for run, tensors in found.items()}


def _span(before: str, tensors: Mapping[str, InFile]) -> _Span:
    header = 0
    for after, (shape, dtype, _) in tensors.items():
        sizes = ",".join(map(str, shape))
        header += len(f',"{before}{after}":{{"dtype":"{dtype}","shape":[{sizes}],"data_offsets":[,]}}')
    ends = np.cumsum([math.prod(shape) * itemsize for shape, _, itemsize in tensors.values()], dtype=np.int64)
    return _Span(ends, header)


def _digits_of_offsets(
    start: np.ndarray, taken: np.ndarray, spans: Sequence[_Span], tensors: np.ndarray, code: np.ndarray
) -> np.ndarray:
    """Digits of where the tensors of a span begin and end, of (n,) files; all have as many, but for few files."""
    first = _digits(start)
    digits = 2 * tensors[code] * first
    uneven = np.flatnonzero(first != _digits(start + taken))
    for number in np.unique(code[uneven]):
        rows = uneven[code[uneven] == number]
        offsets = np.array([0, *np.repeat(spans[number].ends, 2)[:-1]])
        digits[rows] = _digits(start[rows, None] + offsets).sum(axis=1)
    return digits


def _digits(numbers: np.ndarray) -> np.ndarray:
    return 1 + np.searchsorted(POWERS, numbers, side="right")

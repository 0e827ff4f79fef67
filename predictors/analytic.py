"""Analytic costs of a subnetwork: parameters, multiply-accumulates and file size, counted exactly from the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from search_spaces import Layout, SubnetConfig
from search_spaces.family import Position
from search_spaces.layout import FACTORS
from search_spaces.subnet import PER_LAYER

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shape = tuple[int, ...]
Pieces = dict[str, dict[str, tuple[int, ...]]]
"""Parent name -> the tensors that the extracted model holds of it: name in their module -> shape."""
Found = TypeVar("Found")

LEADING = -1
"""Stands for the modules of a first layer that serve its whole stack."""

COUNTED = ("num_parameters", "macs", "size_mb")
"""What is counted exactly."""

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "bool": "BOOL"}
"""Name of a torch type -> its name in a safetensors header."""


@dataclass(frozen=True)
class Stored:
    """One tensor of the parent: its shape, its name in the file, the type of its numbers and their bytes.

    The file holds tensors of one name there as one, concatenated along their first dimension. ``disk_names`` has the
    names of its factors as well, by what `Layout.pieces` calls them.
    """

    shape: Shape
    disk_names: Mapping[str, str]
    dtype: str
    itemsize: int


@dataclass(frozen=True)
class AnalyticCosts:
    """Counts any subnetwork of one parent; needs no torch once it is made.

    A layer counts the same wherever it occurs, so each is counted once and remembered.

    Attributes:
        layout: Table of the parent.
        stored: Name -> each tensor that goes into the parent's file; tied ones once.
        parameters: Name -> shape of each parameter, in the file or not; tied ones once.
        multiplied: Name -> shape of each weight that a forward pass uses; tied ones under each of their names.
        label_tokens: Whether every token gets a label or a score, not every sample.
    """

    layout: Layout
    stored: Mapping[str, Stored]
    parameters: Mapping[str, Shape]
    multiplied: Mapping[str, Shape]
    label_tokens: bool
    _known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, model: PreTrainedModel, layout: Layout) -> AnalyticCosts:
        """Reads the shapes of a parent model: its full size, whatever subnetwork of it is active."""
        every = {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}
        left_out = {*(model._keys_to_ignore_on_save or ()), *model.all_tied_weights_keys}
        state = {name: tensor for name, tensor in every.items() if name not in left_out}
        pieces = {name: _kinds(layout, name) for name in state}
        disk_names = _disk_names(model, {new: tensor for n, tensor in state.items() for new in pieces[n].values()})
        on_disk = {name: {kind: disk_names[new] for kind, new in pieces[name].items()} for name in state}
        return cls(
            layout=layout,
            stored={name: _stored(tensor, on_disk[name]) for name, tensor in state.items()},
            parameters={name: tuple(p.shape) for name, p in model.named_parameters()},
            multiplied={name: tuple(t.shape) for name, t in every.items() if name.endswith(".weight")},
            label_tokens=not type(model).__name__.endswith("ForSequenceClassification"),
        )

    def num_parameters(self, subnet: SubnetConfig) -> int:
        """Parameters of the extracted model, tied ones once."""
        parts = self._by_part("parameters", subnet, lambda part: sum(map(_numbers, part.values())))
        return sum(count for _, count in parts)

    def macs(self, subnet: SubnetConfig, sequence_length: int | None = None) -> int:
        """Multiply-accumulates of one forward pass on one sample.

        Counts matrix products and convolutions, attention scores and their weighted sum included; not norms,
        activations or additions. An encoder-decoder reads and writes ``sequence_length`` tokens.

        Args:
            subnet: What to count.
            sequence_length: Tokens of the sample; an image model ignores it.
        """
        runs = self.layout.positions(sequence_length, label_tokens=self.label_tokens)
        repeated = subnet.num_hidden_layers if self.layout.family.shared_layers else 1
        total = 0
        for position, macs in self._by_part(
            "multiplied", subnet, lambda part: self._product_macs(part, runs), sequence_length
        ):
            total += macs * (1 if position is None else repeated)
        for position in range(len(subnet.layers)):
            key = ("scores", sequence_length, *_layer_key(subnet, position))
            total += self._remembered(key, partial(self._attention_macs, subnet, position, runs))
        return total

    def _product_macs(self, part: Pieces, runs: Mapping[Position, int]) -> int:
        """Of the weights of one part: outside the layers, or of a layer."""
        layout, total = self.layout, 0
        for name, shapes in part.items():
            place, module = layout.locate(name), name.removesuffix(".weight")
            if place.stack is None:
                on = [p for path, p in layout.family.positions.items() if f".{module}".endswith(f".{path}")]
                total += sum(runs[position] for position in on) * _numbers(shapes)
            elif len(place.axes) == 2 and None not in place.axes:
                total += runs[layout.runs_on(place)] * _numbers(shapes)
        return total

    def _attention_macs(self, subnet: SubnetConfig, position: int, runs: Mapping[Position, int]) -> int:
        """Scores and their weighted sum in one layer, of self-attention and cross-attention."""
        layout, width = self.layout, subnet.width(position)
        number, _ = layout.stack_of(subnet.layers[position])
        is_encoder = len(layout.depths) > 1 and number == 0
        tokens = runs["source" if is_encoder else "token"]
        crossed = tokens * runs["source"] if layout.has_cross_attention(number) else 0
        pairs = layout.attention_pairs(subnet, position, tokens) + crossed
        found = 2 * pairs * width["num_attention_heads"] * layout.head_dim
        extra = layout.family.extra_macs
        return found + (extra(layout, width, tokens) if extra is not None else 0)

    def size_bytes(self, subnet: SubnetConfig) -> int:
        """Size of the exported ``model.safetensors`` to the byte, header included.

        Source: the safetensors format, github.com/huggingface/safetensors#format.
        """
        tensors: dict[str, tuple[Stored, Shape]] = {}
        for position, files in self._by_part("stored", subnet, self._files_of):
            index = "" if position is None else str(self._index(subnet, position))
            for (before, after), stored, shape in files:
                disk_name = f"{before}{index}{after}"
                if disk_name in tensors:
                    shape = (tensors[disk_name][1][0] + shape[0], *shape[1:])
                tensors[disk_name] = stored, shape
        header, end = len('{"__metadata__":{"format":"pt"}}'), 0
        for disk_name, (stored, shape) in sorted(tensors.items()):
            start, end = end, end + math.prod(shape) * stored.itemsize
            sizes = ",".join(map(str, shape))
            header += len(
                f',"{disk_name}":{{"dtype":"{stored.dtype}","shape":[{sizes}],"data_offsets":[{start},{end}]}}'
            )
        return 8 + math.ceil(header / 8) * 8 + end

    def _files_of(self, part: Pieces) -> list[tuple[tuple[str, str], Stored, Shape]]:
        """Tensors in the file: what stands before and after the number of their layer in its name, and their shape."""
        found = []
        for name, shapes in part.items():
            place, stored = self.layout.locate(name), self.stored[name]
            for kind, shape in shapes.items():
                before, after = stored.disk_names[kind], ""
                if place.layer is not None:
                    number = f".{self.layout.stack_of(place.layer)[1]}."
                    before, _, after = before.partition(number)
                    before, after = f"{before}.", f".{after}"
                found.append(((before, after), stored, shape))
        return found

    def _index(self, subnet: SubnetConfig, position: int) -> int:
        """Which of the layers of its stack one is."""
        stack, _ = self.layout.stack_of(subnet.layers[position])
        return self.layout.index_in_stack(subnet, stack, position)

    # -- parts --------------------------------------------------------------------------------------------------------

    def _by_part(
        self, which: str, subnet: SubnetConfig, count: Callable[[Pieces], Found], *given: Any
    ) -> Iterator[tuple[int | None, Found]]:
        """Something counted of what lies outside the layers (None), then of each layer, by its position.

        Args:
            which: ``parameters``, ``multiplied`` or ``stored``.
            subnet: What to count.
            count: Counts a part.
            given: What else the count depends on.
        """
        names = self._names[which]
        outer = (subnet.hidden_size, max(subnet.num_attention_heads))
        yield None, self._remembered((which, given, outer), lambda: count(self._pieces(subnet, which, names[None])))
        for position, layer in enumerate(subnet.layers):
            pieces = partial(self._pieces, subnet, which, names.get(layer, []))
            key = (which, given, *_layer_key(subnet, position))
            yield position, self._remembered(key, partial(_applied, count, pieces))
        for name in names[LEADING]:
            first = self.layout.position_of(subnet, self.layout.locate(name))
            if first is not None:
                yield first, count(self._pieces(subnet, which, [name]))

    def _remembered(self, key: Any, count: Callable[[], Found]) -> Found:
        if key not in self._known:
            self._known[key] = count()
        return cast(Found, self._known[key])

    @cached_property
    def _names(self) -> dict[str, dict[int | None, list[str]]]:
        """Names of each kind by the layer of the parent they lie in; None: in no layer, `LEADING`: in a first one."""
        found: dict[str, dict[int | None, list[str]]] = {}
        for which in ("parameters", "multiplied", "stored"):
            found[which] = {None: [], LEADING: []}
            for name in getattr(self, which):
                place = self.layout.locate(name)
                layer = LEADING if self.layout.is_leading(place) else place.layer
                found[which].setdefault(layer, []).append(name)
        return found

    def _pieces(self, subnet: SubnetConfig, which: str, names: Iterable[str]) -> Pieces:
        """What the extracted model holds of some of the parent's tensors."""
        full, found = getattr(self, which), Pieces()
        for name in names:
            width, shape = self.layout.width_of(subnet, name), full[name]
            if width is not None:
                shape = shape.shape if isinstance(shape, Stored) else shape
                found[name] = self.layout.pieces(self.layout.locate(name), name.rpartition(".")[2], width, shape)
        return found

    def count(self, name: str, subnet: SubnetConfig, sequence_length: int | None = None) -> float:
        """One figure by name: ``num_parameters``, ``macs``, or ``size_mb`` in megabytes of 10^6 bytes."""
        if name == "size_mb":
            return self.size_bytes(subnet) / 1e6
        return float(self.macs(subnet, sequence_length) if name == "macs" else self.num_parameters(subnet))


def _applied(count: Callable[[Pieces], Found], pieces: Callable[[], Pieces]) -> Found:
    return count(pieces())


def _layer_key(subnet: SubnetConfig, position: int) -> tuple[Any, ...]:
    """What a kept layer is counted by."""
    return subnet.layers[position], subnet.hidden_size, *(getattr(subnet, name)[position] for name in PER_LAYER)


def _numbers(shapes: Mapping[str, Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _disk_names(model: PreTrainedModel, state: Mapping[str, Any]) -> dict[str, str]:
    """Name of each tensor -> its name in the file, found by writing tensors that hold their own number."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    names = list(state)
    numbered = {name: torch.tensor(float(k)).expand(state[name].shape) for k, name in enumerate(names)}
    name_of = {id(tensor): name for name, tensor in numbered.items()}
    found: dict[str, str] = {}
    for disk_name, tensor in revert_weight_conversion(model, dict(numbered)).items():
        sources = [name_of[id(tensor)]] if id(tensor) in name_of else [names[int(k)] for k in tensor.unique()]
        found |= dict.fromkeys(sources, disk_name)
    return found


def _kinds(layout: Layout, name: str) -> dict[str, str]:
    """Every name that a parameter or its factors can have in the extracted model, by its part within the module."""
    module, _, kind = name.rpartition(".")
    kinds = {kind: name}
    if layout.linear_axes(layout.locate(name)):
        kinds |= {new: f"{module}.{new}" for new in FACTORS[kind]}
    return kinds


def _stored(tensor: object, disk_names: Mapping[str, str]) -> Stored:
    dtype = str(tensor.dtype).removeprefix("torch.")  # type: ignore[attr-defined]
    return Stored(tuple(tensor.shape), disk_names, DTYPES[dtype], tensor.element_size())  # type: ignore[attr-defined]

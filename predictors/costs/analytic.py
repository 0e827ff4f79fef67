"""Analytic costs of subnetworks: parameters, multiply-accumulates, memory and file size, counted from the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from predictors.costs.file_size import FileSizes, Stored
from predictors.costs.part_table import PartTable
from predictors.costs.parts import Parts, Shape
from predictors.measurement.workload import Workload
from search_spaces import Layout, SubnetBatch, SubnetConfig
from search_spaces.shapes import NAMES_IN_SUBNET

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COUNTED = ("num_parameters", "macs", "size_mb", "peak_activation_mb", "kv_cache_mb")
"""What is counted; all exactly but ``peak_activation_mb``."""

AT_ONCE = 2**16
"""Subnetworks that are counted together, so that a million do not fill the memory."""

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "bool": "BOOL"}
"""Name of a torch type -> its name in a safetensors header."""


@dataclass(frozen=True)
class AnalyticCosts:
    """Counts any subnetwork of one parent; needs no torch once it is made.

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

    @cached_property
    def parts(self) -> Parts:
        """Counts what each block of each layer costs."""
        return Parts(self.layout, self.parameters, self.multiplied, self.label_tokens)

    @cached_property
    def files(self) -> FileSizes:
        """Counts the bytes of exported files."""
        return FileSizes(self.layout, self.stored)

    def num_parameters(self, subnet: SubnetConfig) -> int:
        """Parameters of the extracted model, tied ones once; as many whatever bits they are stored in, scales not
        among them."""
        return sum(part.num_parameters for part in self.parts(subnet, None))

    def macs(self, subnet: SubnetConfig, sequence_length: int | None = None) -> int:
        """Multiply-accumulates of one forward pass on one sample.

        Counts matrix products and convolutions, attention scores and their weighted sum included; not norms,
        activations or additions. An encoder-decoder reads and writes ``sequence_length`` tokens. A product counts one
        whatever the bits of its numbers.

        Args:
            subnet: What to count.
            sequence_length: Tokens of the sample; an image model ignores it.
        """
        return sum(part.macs for part in self.parts(subnet, sequence_length))

    @property
    def counted(self) -> tuple[str, ...]:
        """Those of `COUNTED` that this model has: the size of a cache only where it generates."""
        return tuple(name for name in COUNTED if self.layout.family.generates or name != "kv_cache_mb")

    def count(
        self, names: Sequence[str], subnets: Sequence[SubnetConfig], workload: Workload | None = None
    ) -> dict[str, np.ndarray]:
        """Figures of many subnetworks at once: each name -> (n,) floats.

        Megabytes are of 10^6 bytes. A million of a `SubnetBatch` take seconds.

        Args:
            names: Of figures, in `COUNTED`. ``peak_activation_mb`` is what the workload's batch needs beside the
                weights in eager PyTorch, ``kv_cache_mb`` the keys and values of its tokens.
            subnets: What to count.
            workload: Batch, tokens and precision.
        """
        workload, found = workload or Workload(), {name: [np.zeros(0)] for name in names}
        batch = SubnetBatch.from_subnets(subnets, self.layout.parent.num_hidden_layers)
        for start in range(0, len(batch), AT_ONCE):
            here = batch[start : start + AT_ONCE]
            for name, values in self._counted(names, here, workload).items():
                found[name].append(values)
        return {name: np.concatenate(values) for name, values in found.items()}

    def _counted(self, names: Sequence[str], batch: SubnetBatch, workload: Workload) -> dict[str, np.ndarray]:
        whole = PartTable(self.parts, batch, workload.sequence_length)
        mb = workload.batch_size * workload.activation_bytes / 1e6
        counts = {
            "num_parameters": lambda: whole.sum(lambda part: part.num_parameters),
            "macs": lambda: whole.sum(lambda part: part.macs),
            "size_mb": lambda: self.files(batch) / 1e6,
            "peak_activation_mb": lambda: self.step(whole, workload).max(lambda part: part.live) * mb,
            "kv_cache_mb": lambda: whole.sum(lambda part: part.cached) * mb,
        }
        return {name: counts[name]() for name in names}

    def step(self, whole: PartTable, workload: Workload) -> PartTable:
        """The parts of one call of a workload: of the whole sequence, or of its last token."""
        return PartTable(self.parts, whole.batch, 1) if workload.phase == "decode" else whole

    def size_bytes(self, subnet: SubnetConfig) -> int:
        """Size of the exported ``model.safetensors`` to the byte, header and rounded weights included."""
        return int(self.files(SubnetBatch.from_subnets([subnet], self.layout.parent.num_hidden_layers))[0])


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
    place = layout.locate(name)
    if layout.shapes.linear_axes(place) or layout.shapes.is_embedding(place):
        kinds |= {new: f"{module}.{new}" for new in NAMES_IN_SUBNET[kind]}
    return kinds


def _stored(tensor: object, disk_names: Mapping[str, str]) -> Stored:
    dtype = str(tensor.dtype).removeprefix("torch.")  # type: ignore[attr-defined]
    return Stored(tuple(tensor.shape), disk_names, DTYPES[dtype], tensor.element_size())  # type: ignore[attr-defined]

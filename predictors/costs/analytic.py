"""AnalyticCosts: parameters, multiply-accumulates, memory and file size of subnetworks, counted from shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from predictors.costs.block_costs import BlockCosts, Shape
from predictors.costs.cost_table import CostTable
from predictors.costs.file_size import FileSizes, ParentTensor
from predictors.costs.stored_dtype import stored_dtype
from predictors.measurement.workload import Workload
from search_spaces import TASKS, Layout, SubnetBatch, SubnetConfig
from search_spaces.dimensions import COST_DIMENSIONS, DIMENSIONS
from search_spaces.shapes import NAMES_IN_SUBNET, TABLE_NAMES_IN_SUBNET

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

COST_NAMES = ("num_parameters", "macs", "size_mb", "peak_activation_mb", "kv_cache_mb", *COST_DIMENSIONS)
"""Costs that can be counted; all are exact except ``peak_activation_mb``."""

CHUNK_SIZE = 2**16
"""Subnetworks that are counted at once; a million would fill the memory."""

MULTIPLIED = (".weight", ".weight.original1")
"""Ends of the names of weights that multiply; the second is the direction of a weight-normed convolution."""

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "bool": "BOOL"}
"""Name of a torch dtype -> its name in a safetensors header."""


@dataclass(frozen=True)
class AnalyticCosts:
    """Counts the costs of any subnetwork of one parent. Only `from_model` needs torch.

    Attributes:
        layout: Layout of the parent.
        stored: Name -> tensor, for all tensors in the parent's file; tied ones once.
        parameters: Name -> shape, for all parameters, in the file or not; tied ones once.
        matmul_weights: Name -> shape, for all weights that a forward pass uses; tied ones under each of their names.
        task: Its task, a name in `TASKS`.
    """

    layout: Layout
    stored: Mapping[str, ParentTensor]
    parameters: Mapping[str, Shape]
    matmul_weights: Mapping[str, Shape]
    task: str

    @classmethod
    def from_model(
        cls, model: PreTrainedModel, layout: Layout, task: str | None = None, dtype: torch.dtype | None = None
    ) -> AnalyticCosts:
        """Reads the shapes of a parent model; these are of its full size, whatever subnetwork is active.

        Args:
            model: The parent.
            layout: Its layout.
            task: Its task, a name in `TASKS`; default: the first one of its family.
            dtype: Of its files; default: that of the model, which may be trained in another.
        """
        tensors = {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}
        not_saved = {*(model._keys_to_ignore_on_save or ()), *model.all_tied_weights_keys}
        state = {name: tensor for name, tensor in tensors.items() if name not in not_saved}
        names_of = {name: _possible_names(layout, name) for name in state}
        disk_names = _disk_names(model, {new: tensor for n, tensor in state.items() for new in names_of[n].values()})
        dtypes = _stored_dtypes(model, state, dtype)
        on_disk = {name: {key: disk_names[new][0] for key, new in names_of[name].items()} for name in state}
        return cls(
            layout=layout,
            stored={
                name: _parent_tensor(tensor, dtypes[name], on_disk[name], disk_names[name])
                for name, tensor in state.items()
            },
            parameters={name: tuple(p.shape) for name, p in model.named_parameters()},
            matmul_weights={name: tuple(t.shape) for name, t in tensors.items() if _multiplies(layout, name)},
            task=task or layout.family.tasks[0],
        )

    @cached_property
    def block_costs(self) -> BlockCosts:
        """Counts the costs of each block of each layer."""
        return BlockCosts(self.layout, self.parameters, self.matmul_weights, TASKS[self.task].labels_tokens)

    @cached_property
    def file_sizes(self) -> FileSizes:
        """Counts the bytes of exported files."""
        return FileSizes(self.layout, self.stored)

    def num_parameters(self, subnet: SubnetConfig) -> int:
        """Number of parameters of the extracted model, tied ones once; scales of quantized weights are not counted."""
        return sum(cost.num_parameters for cost in self.block_costs(subnet, None))

    def macs(self, subnet: SubnetConfig, sequence_length: int | None = None) -> int:
        """Multiply-accumulates of one forward pass on one sample.

        Counts matrix products and convolutions, including attention scores and their weighted sum, but not norms,
        activation functions or additions. An encoder-decoder reads and writes ``sequence_length`` tokens. The dtype
        does not change the count.

        Args:
            subnet: The subnetwork.
            sequence_length: Tokens per sample; image models ignore it.
        """
        return sum(cost.macs for cost in self.block_costs(subnet, sequence_length))

    @property
    def cost_names(self) -> tuple[str, ...]:
        """The `COST_NAMES` of this model: ``kv_cache_mb`` only if it generates, dimensions only if they may vary."""
        missing = {name for name in COST_DIMENSIONS if DIMENSIONS[name].fixed_in(TASKS[self.task])}
        missing |= set() if self.layout.family.generates else {"kv_cache_mb"}
        return tuple(name for name in COST_NAMES if name not in missing)

    def count(
        self, names: Sequence[str], subnets: Sequence[SubnetConfig], workload: Workload | None = None
    ) -> dict[str, np.ndarray]:
        """Costs of many subnetworks at once: name -> (n,) floats.

        A megabyte is 10^6 bytes. A million subnetworks in a `SubnetBatch` take seconds.

        Args:
            names: Names of costs, in `COST_NAMES`. ``peak_activation_mb`` is the memory that the workload's batch
                needs in eager PyTorch in addition to the weights, ``kv_cache_mb`` that of its keys and values.
            subnets: The subnetworks.
            workload: Batch size, tokens and dtype.
        """
        workload, chunks = workload or Workload(), {name: [np.zeros(0)] for name in names}
        batch = SubnetBatch.from_subnets(subnets, self.layout.parent.num_hidden_layers)
        for start in range(0, len(batch), CHUNK_SIZE):
            chunk = batch[start : start + CHUNK_SIZE]
            for name, values in self._count(names, chunk, workload).items():
                chunks[name].append(values)
        return {name: np.concatenate(values) for name, values in chunks.items()}

    def _count(self, names: Sequence[str], batch: SubnetBatch, workload: Workload) -> dict[str, np.ndarray]:
        table = CostTable(self.block_costs, batch, workload.sequence_length)
        mb = workload.batch_size * workload.activation_bytes / 1e6
        counts = {
            "num_parameters": lambda: table.sum(lambda cost: cost.num_parameters),
            "macs": lambda: table.sum(lambda cost: cost.macs),
            "size_mb": lambda: self.file_sizes(batch) / 1e6,
            "peak_activation_mb": lambda: (
                self.call_table(table, workload).max(lambda cost: cost.live_activations) * mb
            ),
            "kv_cache_mb": lambda: table.sum(lambda cost: cost.kv_cache) * mb,
        }
        of_dimensions = {name: batch.subnet_values[name].astype(float) for name in COST_DIMENSIONS}
        return {name: of_dimensions[name] if name in of_dimensions else counts[name]() for name in names}

    def call_table(self, table: CostTable, workload: Workload) -> CostTable:
        """Costs of one call of a workload: for all tokens, or for the last token in phase ``decode``."""
        return CostTable(self.block_costs, table.batch, 1) if workload.phase == "decode" else table


def _multiplies(layout: Layout, name: str) -> bool:
    """Whether a parameter is a weight of a matrix product, or those of all experts of a layer."""
    return name.endswith(MULTIPLIED) or layout.shapes.is_of_experts(layout.locate(name))


def _disk_names(model: PreTrainedModel, state: Mapping[str, Any]) -> dict[str, list[str]]:
    """Name of each tensor -> its name in the file, or those of its parts: the matrices of each expert, in their order.

    Found by converting tensors filled with their own index.
    """
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    names = list(state)
    numbered = {name: torch.tensor(float(k)).expand(_thin(state[name].shape)) for k, name in enumerate(names)}
    name_of = {id(tensor): name for name, tensor in numbered.items()}
    names_on_disk: dict[str, list[str]] = {}
    for disk_name, tensor in revert_weight_conversion(model, dict(numbered)).items():
        sources = [name_of[id(tensor)]] if id(tensor) in name_of else [names[int(k)] for k in tensor.unique()]
        for source in sources:
            names_on_disk.setdefault(source, []).append(disk_name)
    return {name: sorted(found, key=_by_number) for name, found in names_on_disk.items()}


def _thin(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape as cheap to convert: the matrices of experts are two by one."""
    return (shape[0], 2, 1) if len(shape) == 3 else tuple(shape)


def _by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts names by the numbers in them."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _possible_names(layout: Layout, name: str) -> dict[str, str]:
    """All names that a parameter or its factors can have in the extracted model: name in the module -> full name."""
    module, _, own_name = name.rpartition(".")
    names = {own_name: name}
    location = layout.locate(name)
    if layout.shapes.is_embedding(location):
        names |= {new: f"{module}.{new}" for new in TABLE_NAMES_IN_SUBNET}
    elif layout.shapes.linear_axes(location):
        names |= {new: f"{module}.{new}" for new in NAMES_IN_SUBNET[own_name]}
    return names


def _stored_dtypes(
    model: PreTrainedModel, state: Mapping[str, torch.Tensor], dtype: torch.dtype | None
) -> dict[str, torch.dtype]:
    """Dtype of each tensor in a file, which may be another than that of the model."""
    of = None if dtype is None else stored_dtype(model, dtype)
    return {name: t.dtype if of is None or not t.is_floating_point() else of(name) for name, t in state.items()}


def _parent_tensor(
    tensor: torch.Tensor, dtype: torch.dtype, disk_names: Mapping[str, str], parts: Sequence[str]
) -> ParentTensor:
    name = DTYPES[str(dtype).removeprefix("torch.")]
    return ParentTensor(
        tuple(tensor.shape), disk_names, name, dtype.itemsize, tuple(parts[:0] if len(parts) < 2 else parts)
    )

"""Elastic modules: stock modules whose parameters are read as views of their active entries.

A narrower subnetwork therefore computes less. Replacing only the class of a module keeps its parameters, their names,
ties and optimizer state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from nas.modeling.calibrated import quantize_on
from nas.modeling.compressed_table import compress, of_channels, restore
from nas.modeling.modeling_nas import SHAPE_ATTRIBUTES, skip_output
from nas.modeling.quantized import fake_quant_linear, quantized_linear
from search_spaces.dimensions.bits import FULL_PRECISION
from search_spaces.module_kinds import CompressedTable

if TYPE_CHECKING:
    from search_spaces.shapes import Rows


@dataclass(eq=False)
class Compensated:
    """Entries along one dimension of which the active ones take over shares of the others.

    Without gradients the resulting weight is kept, which is smaller than the shares, and as long as the weight stays
    as it is.

    Attributes:
        kept: The active entries: a slice or indices.
        dropped: Indices of the others (dropped,).
        solve: Computes what each active entry takes over of each other one (kept, dropped); of weights of all experts
            of a layer, those of each expert (experts, kept, dropped).
    """

    kept: slice | torch.Tensor
    dropped: torch.Tensor
    solve: Callable[[], torch.Tensor]
    _shares: torch.Tensor | None = None
    _folded: tuple[tuple[object, ...], torch.Tensor] | None = None

    @property
    def is_trained(self) -> bool:
        """Whether it keeps shares, with which gradients reach all entries."""
        return self._shares is not None

    @property
    def nbytes(self) -> int:
        """Memory that is kept."""
        return sum(each.nbytes for each in (self._shares, self._folded and self._folded[1]) if each is not None)

    def select(self, weight: torch.Tensor, dim: int) -> torch.Tensor:
        """Returns the active entries with their shares, which are added before they are rounded to 16 bits."""
        if weight.requires_grad and torch.is_grad_enabled():
            self._shares = shares = self._shares_for(weight)
            return self._fold(weight, dim, shares)
        version = weight.data_ptr(), weight._version, weight.dtype, weight.shape
        if self._folded is None or self._folded[0] != version:
            with torch.inference_mode(False), torch.no_grad():
                self._folded = version, self._fold(weight, dim, self._shares_for(weight))
        return self._folded[1]

    def _shares_for(self, weight: torch.Tensor) -> torch.Tensor:
        """The shares on the device of a weight, in its dtype, or in float32 if that has 16 bits."""
        shares = self.solve() if self._shares is None else self._shares
        return shares.to(weight.device, torch.promote_types(weight.dtype, torch.float32))

    def _fold(self, weight: torch.Tensor, dim: int, shares: torch.Tensor) -> torch.Tensor:
        kept, dropped = (
            weight[(slice(None),) * dim + (self.kept,)],
            weight.index_select(dim, self.dropped.to(weight.device)),
        )
        if shares.dim() == 3:
            taken = shares @ dropped.to(shares.dtype).transpose(1, 2)
            return (kept + taken.transpose(1, 2)).to(weight.dtype)
        taken = torch.tensordot(shares, dropped.to(shares.dtype), ([1], [dim]))
        return (kept + taken.movedim(0, dim)).to(weight.dtype)


Entries = slice | torch.Tensor | Compensated
"""Active entries along one dimension: a slice, indices (entries,), weights (entries, full entries) of the sums that
replace them, or entries that take over shares of the others."""
Index = tuple[Entries, ...]
"""Active entries of a parameter, for each of its dimensions."""


class Elastic(nn.Module):
    """Mixin of elastic modules, added to a module's class by `make_elastic`.

    Attributes:
        active_entries: Name of a parameter -> its active entries, if some are inactive.
        skip: What the module returns while its block is skipped (see `modeling_nas.Skip`), else None.
        basis: Orthonormal basis (outputs, rank) of the outputs of a low-rank linear layer or embedding, else None.
        table: How the rows of an embedding are stored, and the codebook of a product quantization; else None.
        bits: Dtype in which a linear layer is stored and multiplied.
        moment: Mean of x x^T over its active inputs x, on which it is rounded to four bits; None if it is unknown.
        quantized: Part of the layer -> version of the weight, and what is stored of it, as long as the same is active.
        computes_on: Device to which the active entries are copied while the module runs, where the parameters stay on
            another one; else None.
        copies: Name of a parameter -> its copy there; None while the module does not run.
    """

    active_entries: dict[str, Index]
    skip: str | None
    basis: torch.Tensor | None
    table: tuple[CompressedTable, torch.Tensor | None] | None
    bits: str
    moment: torch.Tensor | None
    quantized: dict[str, tuple[tuple[int, int], dict[str, torch.Tensor]]]
    computes_on: torch.device | None
    copies: dict[str, torch.Tensor] | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the stock module on its active entries, or skips it."""
        if self.skip is not None:
            return skip_output(self.skip, getattr(self, "layer_idx", None), *args, **kwargs)
        if self.computes_on is None:
            return self._compute(*args, **kwargs)
        self.__dict__["copies"] = {}
        try:
            return self._compute(*args, **kwargs)
        finally:
            self.__dict__["copies"] = None

    def _compute(self, *args: Any, **kwargs: Any) -> Any:
        if self.basis is not None and not isinstance(self, nn.Embedding):
            up, down = low_rank_factors(linear_weight(self), self.basis)
            return self._linear("up", self._linear("down", args[0], down, None), up, self.bias)
        if self.bits != FULL_PRECISION:
            return self._linear("whole", args[0], linear_weight(self), self.bias)
        return super().forward(*args, **kwargs)

    def _linear(self, part: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.bits == FULL_PRECISION:
            return functional.linear(x, weight, bias)
        if torch.is_grad_enabled():
            return fake_quant_linear(x, weight, bias, self.bits)
        return quantized_linear(x, bias=bias, bits=self.bits, **self._quantized(part, weight))

    def _quantized(self, part: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is stored of a part; it is computed again after the weight changed."""
        parameter: Any = self._parameters["weight"]
        version = parameter._version, parameter.data_ptr()
        found = self.quantized.get(part)
        if found is None or found[0] != version:
            moment = None if part == "up" else self.moment
            found = version, quantize_on(weight, self.bits, moment)
            if self.computes_on is None:
                self.quantized[part] = found
        return found[1]

    def __getattr__(self, name: str) -> Any:
        """Returns the active entries of a parameter, to the module itself and to others."""
        parameter: Any = super().__getattr__(name)
        index = self.__dict__["active_entries"].get(name)
        active = parameter if index is None else select_active(parameter, index)
        copies = self.__dict__["copies"]
        if copies is None or not isinstance(active, torch.Tensor):
            return active
        if name not in copies:
            copies[name] = active.to(self.__dict__["computes_on"])
        return copies[name]


class ActiveEmbedding(nn.Embedding):
    """Base class of elastic embeddings: looks up active channels in the full table and projects them on a basis."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns embeddings (..., active channels)."""
        weight = self._parameters["weight"]
        assert weight is not None and self.max_norm is None and not self.scale_grad_by_freq
        kept, columns = self.__dict__["active_entries"].get("weight", (slice(None), slice(None)))
        if isinstance(kept, torch.Tensor) and kept.dim() == 2:
            return functional.embedding(input[..., : len(kept)], self.weight)  # as many positions as are left
        if isinstance(kept, torch.Tensor):
            input = kept.to(input.device)[input]
        stop = columns.stop if isinstance(columns, slice) else None
        rows: torch.Tensor = _TruncatedLookup.apply(weight, input, stop, self.padding_idx)
        if isinstance(columns, torch.Tensor):
            rows = select_active(rows, (slice(None),) * input.dim() + (columns,))
        basis, table = self.__dict__["basis"], self.__dict__["table"]
        if basis is None:
            return rows if table is None else compressed_rows(rows, *table)
        basis = basis.to(rows.device, rows.dtype)  # it stays behind where the model is moved
        thin = rows @ basis
        return (thin if table is None else compressed_rows(thin, *table)) @ basis.T


def compressed_rows(rows: torch.Tensor, kind: CompressedTable, codebook: torch.Tensor | None) -> torch.Tensor:
    """Returns rows (.., channels) as a compressed table gives them; gradients pass the rounding (straight-through)."""
    channels = rows.shape[-1]
    with torch.no_grad():
        own = None if codebook is None else of_channels(codebook.to(rows.device, rows.dtype), channels)
        stored = compress(rows, kind.bits, kind.group, own)
        found = restore(channels, kind.group, stored["qweight"], stored.get("scales"), own).to(rows.dtype)
    return rows + (found - rows).detach() if torch.is_grad_enabled() else found


class _TruncatedLookup(torch.autograd.Function):
    """Looks up rows of a table and truncates them to their first channels.

    The gradient is as large as the table, but few of its rows are non-zero. On a CPU it is allocated with ``calloc``:
    rows that are not written cost nothing, while filling it would take as long as the backward pass of a layer.
    """

    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, ids: torch.Tensor, stop: int | None, padding_idx: int | None) -> Any:
        ctx.save_for_backward(ids)
        ctx.table, ctx.padding_idx = table, padding_idx
        return functional.embedding(ids, table)[..., :stop]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (ids,), table = ctx.saved_tensors, ctx.table
        if table.device.type != "cpu" or table.dtype != torch.float32:
            padded = functional.pad(gradient, (0, table.shape[1] - gradient.shape[-1]))
            padding = -1 if ctx.padding_idx is None else ctx.padding_idx
            return torch.ops.aten.embedding_dense_backward(padded, ids, len(table), padding, False), None, None, None
        table_gradient = torch.from_numpy(np.zeros(table.shape, dtype=np.float32))
        active = table_gradient[:, : gradient.shape[-1]]
        active.index_add_(0, ids.flatten(), gradient.flatten(0, -2))
        if ctx.padding_idx is not None:
            active[ctx.padding_idx] = 0
        return table_gradient, None, None, None


def linear_weight(module: nn.Module) -> torch.Tensor:
    """Returns the active weight of a linear layer as (outputs, inputs); a `Conv1D` stores it as (inputs, outputs)."""
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    return weight.T if isinstance(module, Conv1D) else weight


def low_rank_factors(weight: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factorizes U U^T W, the projection of a linear layer's outputs on a basis U.

    Gradients reach W (outputs, inputs); U (outputs, rank) is fixed.

    Returns:
        U (outputs, rank) and U^T W (rank, inputs).
    """
    basis = basis.to(weight.device, weight.dtype)
    return basis, basis.T @ weight


def select_active(tensor: torch.Tensor, index: Index) -> torch.Tensor:
    """Returns the active entries of a tensor: a view if they are a prefix, otherwise a copy.

    Entries that take over shares come first: they are kept for all outputs.
    """
    for dim, rows in enumerate(index):
        if isinstance(rows, Compensated):
            tensor, index = rows.select(tensor, dim), (*index[:dim], slice(None), *index[dim + 1 :])
    tensor = _prefix_view(tensor, [rows.stop if isinstance(rows, slice) else None for rows in index])
    for dim, rows in enumerate(index):
        if isinstance(rows, torch.Tensor) and rows.dim() == 2:
            tensor = torch.tensordot(rows.to(tensor), tensor, ([1], [dim])).movedim(0, dim)
        elif isinstance(rows, torch.Tensor):
            tensor = tensor.index_select(dim, rows.to(tensor.device))
    return tensor


def _prefix_view(tensor: torch.Tensor, stops: list[int | None]) -> torch.Tensor:
    """Returns the first entries along each dimension (None: all) as one view, so that backward fills it only once."""
    size = [length if stop is None else min(stop, length) for stop, length in zip(stops, tensor.shape, strict=False)]
    size += tensor.shape[len(stops) :]
    return tensor if size == list(tensor.shape) else tensor.as_strided(size, tensor.stride(), tensor.storage_offset())


def as_index(rows: Rows) -> slice | torch.Tensor:
    """Converts active rows of a layout to an index for `select_active`."""
    return rows if isinstance(rows, slice) else torch.from_numpy(rows)


class ElasticModuleList(nn.ModuleList):
    """A list of layers that shows only its active ones; None means all."""

    active: tuple[int, ...] | None = None

    def _active_layers(self) -> list[nn.Module]:
        kept = range(len(self._modules)) if self.active is None else self.active
        return [self._modules[str(i)] for i in kept]

    def __len__(self) -> int:
        return len(self._modules) if self.active is None else len(self.active)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._active_layers())

    def __getitem__(self, index: Any) -> Any:
        return self._active_layers()[index]

    def parent_layer(self, index: int) -> nn.Module:
        """Returns the layer at an index of the parent, active or not."""
        return self._modules[str(index)]


def _property_of_weight_shape(value_of_shape: Callable[[tuple[int, ...]], Any]) -> property:
    """Returns a property that is computed from the shape of the active weight."""

    def read(module: nn.Module) -> Any:
        return value_of_shape(tuple(module.weight.shape))  # type: ignore[arg-type]

    return property(read)


@cache
def elastic_class(stock: type, *wrappers: type) -> type:
    """Returns the elastic subclass of a module's class, with mixins."""
    shape_properties = {
        name: _property_of_weight_shape(of_shape)
        for cls, (name, of_shape) in SHAPE_ATTRIBUTES.items()
        if issubclass(stock, cls)
    }
    members = {"__module__": stock.__module__, **shape_properties}
    bases: tuple[type, ...] = (stock,)
    if issubclass(stock, nn.Embedding):
        bases = (ActiveEmbedding,) if stock is nn.Embedding else (stock, ActiveEmbedding)
    return type(f"Elastic{stock.__name__}", (Elastic, *wrappers, *bases), members)


def freeze_batch_norms(model: nn.Module) -> None:
    """Lets the batch norms of a model keep their statistics in training.

    Subnetworks that train in turn have other means and variances, so running ones would be those of none of them.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = _frozen_class(type(module))  # type: ignore[arg-type]
            module.eval()


@cache
def _frozen_class(stock: type) -> type:
    """Returns the subclass of a batch norm that is never in training mode."""

    def train(module: Any, mode: bool = True) -> Any:
        return stock.train(module, False)  # type: ignore[attr-defined]

    return type(stock.__name__, (stock,), {"train": train, "__module__": stock.__module__})


def make_elastic(module: nn.Module, *wrappers: type) -> Elastic:
    """Replaces the class of a module by its elastic subclass; all entries are active."""
    if not isinstance(module, Elastic):
        module.active_entries, module.skip, module.basis, module.table = {}, None, None, None  # type: ignore[assignment]
        module.bits, module.moment, module.quantized = FULL_PRECISION, None, {}  # type: ignore[assignment]
        module.computes_on, module.copies = None, None  # type: ignore[assignment]
        module.__class__ = elastic_class(type(module), *wrappers)  # type: ignore[arg-type]
    return module  # type: ignore[return-value]

"""Stock modules made elastic in place: their parameters are read as views of the active entries, so a narrower
subnetwork really is less work. Swapping the class of the module object keeps its parameters, names, ties and
optimiser state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from nas.exports.modeling_nas import SHAPED, skipped
from nas.exports.quantized import rounded_linear
from search_spaces.bits import WHOLE

if TYPE_CHECKING:
    from search_spaces.layout import Rows

Index = tuple[slice | torch.Tensor, ...]
"""Active entries of a parameter, one for each of its elastic dimensions."""


class Elastic(nn.Module):
    """Mixed into a module's class by `make_elastic`.

    Attributes:
        views: Parameter name -> its active entries, for those that are not active whole.
        skip: What the module returns while its block is skipped (see `modeling_nas.Skip`), else None.
        basis: Of a linear layer of low rank, the orthonormal directions that its outputs keep (outputs, rank), else
            None.
        bits: In what numbers a linear layer is stored and multiplied.
    """

    views: dict[str, Index]
    skip: str | None
    basis: torch.Tensor | None
    bits: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the stock module computes, unless its block is skipped."""
        if self.skip is not None:
            return skipped(self.skip, getattr(self, "layer_idx", None), *args, **kwargs)
        if isinstance(self, nn.Embedding) and self.views:
            return self._looked_up(*args, **kwargs)
        if self.basis is not None:
            up, down = factors(matrix(self), self.basis)
            return self._product(self._product(args[0], down, None), up, self.bias)
        if self.bits != WHOLE:
            return self._product(args[0], matrix(self), self.bias)
        return super().forward(*args, **kwargs)

    def _product(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.bits == WHOLE:
            return functional.linear(x, weight, bias)
        return rounded_linear(x, weight, bias, self.bits)

    def _looked_up(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What an embedding looks up, cut afterwards: the gradient of a sliced vocabulary would be dear."""
        views, self.views = self.views, {}
        try:
            found = super().forward(*args, **kwargs)
        finally:
            self.views = views
        return take(found, (slice(None),) * (found.dim() - 1) + views["weight"][1:])

    def __getattr__(self, name: str) -> Any:
        """A parameter is read as its active entries, by the module itself and by others."""
        found: Any = super().__getattr__(name)
        index = self.__dict__["views"].get(name)
        return found if index is None else take(found, index)


def matrix(module: nn.Module) -> torch.Tensor:
    """The active weight of a linear layer (outputs, inputs); GPT-2 stores its own inputs first."""
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    return weight.T if isinstance(module, Conv1D) else weight


def factors(weight: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """U and U^T W, (outputs, rank) and (rank, inputs): a linear layer's outputs projected on a basis U.

    Gradients reach W (outputs, inputs); U is fixed.
    """
    basis = basis.to(weight.device, weight.dtype)
    return basis, basis.T @ weight


def take(tensor: torch.Tensor, index: Index) -> torch.Tensor:
    """The active entries of a tensor: a view where they are a prefix, a copy where they are not."""
    tensor = _prefix(tensor, [rows.stop if isinstance(rows, slice) else None for rows in index])
    for dim, rows in enumerate(index):
        if isinstance(rows, torch.Tensor):
            tensor = tensor.index_select(dim, rows.to(tensor.device))
    return tensor


def _prefix(tensor: torch.Tensor, stops: list[int | None]) -> torch.Tensor:
    """The first entries along each dimension (None: all), as one view: its gradient is filled once, not once a cut."""
    size = [length if stop is None else min(stop, length) for stop, length in zip(stops, tensor.shape, strict=False)]
    size += tensor.shape[len(stops) :]
    return tensor if size == list(tensor.shape) else tensor.as_strided(size, tensor.stride(), tensor.storage_offset())


def as_index(rows: Rows) -> slice | torch.Tensor:
    """What `take` reads, of what a layout gives."""
    return rows if isinstance(rows, slice) else torch.from_numpy(rows)


class ElasticModuleList(nn.ModuleList):
    """A list of layers of which only the active ones are seen; None means all."""

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
        """The layer at an index of the parent, active or not."""
        return self._modules[str(index)]


def _of_weight(of_shape: Callable[[tuple[int, ...]], Any]) -> property:
    """An attribute that follows the shape of the active weight."""

    def read(module: nn.Module) -> Any:
        return of_shape(tuple(module.weight.shape))  # type: ignore[arg-type]

    return property(read)


@cache
def elastic_class(stock: type, *wrappers: type) -> type:
    """The elastic subclass of a module's class, with further mixins before it."""
    shaped = {name: _of_weight(of_shape) for cls, (name, of_shape) in SHAPED.items() if issubclass(stock, cls)}
    members = {"__module__": stock.__module__, **shaped}
    return type(f"Elastic{stock.__name__}", (Elastic, *wrappers, stock), members)


def make_elastic(module: nn.Module, *wrappers: type) -> Elastic:
    """Swaps the class of one module for its elastic subclass; every parameter is active whole."""
    if not isinstance(module, Elastic):
        module.views, module.skip, module.basis, module.bits = {}, None, None, WHOLE  # type: ignore[assignment]
        module.__class__ = elastic_class(type(module), *wrappers)  # type: ignore[arg-type]
    return module  # type: ignore[return-value]

"""Stock modules made elastic in place: their parameters are read as views of the active entries, so a narrower
subnetwork really is less work. Swapping the class of the module object keeps its parameters, names, ties and
optimiser state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nas.exports.modeling_nas import SHAPED, skipped

if TYPE_CHECKING:
    from search_spaces.layout import Rows

Index = tuple[slice | torch.Tensor, ...]
"""Active entries of a parameter, one for each of its elastic dimensions."""


class Elastic(nn.Module):
    """Mixed into a module's class by `make_elastic`.

    Attributes:
        views: Parameter name -> its active entries, for those that are not active whole.
        skip: What the module returns while its block is skipped (see `modeling_nas.Skip`), else None.
    """

    views: dict[str, Index]
    skip: str | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the stock module computes, unless its block is skipped."""
        if self.skip is not None:
            return skipped(self.skip, getattr(self, "layer_idx", None), *args, **kwargs)
        if isinstance(self, nn.Embedding) and self.views:
            return self._looked_up(*args, **kwargs)
        return super().forward(*args, **kwargs)

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


def take(tensor: torch.Tensor, index: Index) -> torch.Tensor:
    """The active entries of a tensor: a view where they are a prefix, a copy where they are not."""
    for dim, rows in enumerate(index):
        if isinstance(rows, torch.Tensor):
            tensor = tensor.index_select(dim, rows.to(tensor.device))
        elif rows.stop is not None:
            tensor = tensor.narrow(dim, 0, rows.stop)
    return tensor


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
        module.views, module.skip = {}, None  # type: ignore[assignment]
        module.__class__ = elastic_class(type(module), *wrappers)  # type: ignore[arg-type]
    return module  # type: ignore[return-value]

"""Stock modules made elastic in place: forward computes on a prefix view of the weight, so a narrower subnetwork
really is less work. Swapping the class of the module object keeps its parameters, names, ties and optimiser state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class ElasticLinear(nn.Linear):
    """A linear layer whose first ``active_out`` outputs and ``active_in`` inputs are in use; None means all."""

    active_out: int | None = None
    active_in: int | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Computes (..., active_in) -> (..., active_out)."""
        bias = self.bias if self.bias is None else self.bias[: self.active_out]
        return F.linear(input, self.weight[: self.active_out, : self.active_in], bias)


class ElasticModuleList(nn.ModuleList):
    """A list of layers that iterates over the active ones only; None means all."""

    active: tuple[int, ...] | None = None

    def _active_layers(self) -> list[nn.Module]:
        kept = range(len(self._modules)) if self.active is None else self.active
        return [self._modules[str(i)] for i in kept]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._active_layers())

    def __getitem__(self, index: Any) -> Any:
        return self._active_layers()[index]

    def parent_layer(self, index: int) -> nn.Module:
        """The layer at an index of the parent, active or not."""
        return self._modules[str(index)]


ELASTIC: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: ElasticLinear, nn.ModuleList: ElasticModuleList}
"""Stock class -> the elastic class that takes its place."""


def make_elastic(module: nn.Module) -> None:
    """Swaps the class of one module for its elastic one; a class without one (a norm on `hidden`) stays."""
    module.__class__ = ELASTIC.get(type(module), type(module))

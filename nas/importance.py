"""Importance order: which heads, neurons and layers a shrinking network should keep longest.

Heads and FFN neurons are permuted so that a prefix keeps what matters; the full model's outputs do not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from nas.supernet import Supernet, evaluating
from search_spaces import SubnetConfig
from search_spaces.family import FIELD_OF_AXIS

Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ImportanceOrder:
    """Everything by falling importance, in the parent's own numbering.

    Attributes:
        layers: Parent layers, most important first.
        units: Axis -> for each parent layer, its units (heads or neurons), most important first.
    """

    layers: tuple[int, ...]
    units: dict[str, list[list[int]]]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, ready for JSON."""
        return asdict(self)


def order_by_importance(
    supernet: Supernet, batches: Sequence[Batch], layer_batches: Sequence[Batch] | None = None
) -> ImportanceOrder:
    """Measures importance on labelled batches and permutes the supernet's weights in place accordingly.

    Args:
        supernet: Its full model must be active.
        batches: Model inputs with ``labels``, a few hundred examples of the training data.
        layer_batches: What layers are ordered on, by default the same; fewer will do, see `layer_order`.

    Returns:
        The order that was found, in the numbering the parent had before.
    """
    scores = unit_scores(supernet, batches)
    units = {
        axis: [torch.argsort(s, descending=True, stable=True).tolist() for s in layers]
        for axis, layers in scores.items()
    }
    for axis, layers in units.items():
        for layer, order in enumerate(layers):
            _permute(supernet, layer, axis, order)
    return ImportanceOrder(layer_order(supernet, batches if layer_batches is None else layer_batches), units)


def unit_scores(supernet: Supernet, batches: Sequence[Batch]) -> dict[str, list[torch.Tensor]]:
    """First-order importance of each head and neuron: how much the loss changes when its output is masked.

    The gradient of the loss with respect to a mask on a unit's output equals the sum of weight x gradient over the
    columns that consume it, so one backward pass a batch scores every unit (Michel et al. 2019, arXiv 1905.10650;
    Molchanov et al. 2019, arXiv 1906.10771). Absolute values are summed over batches.

    Returns:
        Axis -> one float64 tensor (units,) per parent layer.
    """
    model = supernet.model
    was_training = model.training
    model.eval()
    scores: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        model.zero_grad()
        model(**_to(batch, model.device)).loss.backward()
        for axis in FIELD_OF_AXIS:
            found = [_layer_scores(supernet, layer, axis) for layer in supernet.parent.layers]
            scores[axis] = [a + b for a, b in zip(scores[axis], found, strict=True)] if axis in scores else found
    model.zero_grad()
    model.train(was_training)
    return scores


def layer_order(supernet: Supernet, batches: Sequence[Batch]) -> tuple[int, ...]:
    """Layers by falling importance: the one whose removal raises the loss least goes first, again and again.

    L layers take L + (L - 1) + ... + 2 passes over the batches: 12 layers and 128 examples are 77 x 128 examples.

    Returns:
        Parent layers, most important first, so that the first d are the ones to keep at depth d.
    """
    kept, dropped = supernet.parent, []
    while kept.num_hidden_layers > 1:
        losses = {layer: mean_loss(supernet, without_layer(kept, layer), batches) for layer in kept.layers}
        least = min(losses, key=lambda layer: (losses[layer], -layer))
        dropped.append(least)
        kept = without_layer(kept, least)
    supernet.activate(supernet.parent)
    return (*kept.layers, *reversed(dropped))


def mean_loss(supernet: Supernet, subnet: SubnetConfig, batches: Sequence[Batch]) -> float:
    """Mean loss of a subnetwork over labelled batches; leaves it active."""
    supernet.activate(subnet)
    with evaluating(supernet.model):
        losses = [supernet.model(**_to(batch, supernet.model.device)).loss.item() for batch in batches]
    return sum(losses) / len(losses)


def without_layer(subnet: SubnetConfig, layer: int) -> SubnetConfig:
    """The subnetwork less one of its layers."""
    place = subnet.layers.index(layer)

    def cut(values: tuple[int, ...]) -> tuple[int, ...]:
        return values[:place] + values[place + 1 :]

    fields = ("layers", *FIELD_OF_AXIS.values())
    return replace(subnet, **{field: cut(getattr(subnet, field)) for field in fields})


def _layer_scores(supernet: Supernet, layer: int, axis: str) -> torch.Tensor:
    """|sum of weight x gradient| over the columns of each unit, for the modules that consume the axis."""
    total = torch.zeros(1, dtype=torch.float64)
    for path, axes in supernet.family.modules.items():
        if len(axes) == 2 and axes[1] == axis:
            weight = supernet.layers.parent_layer(layer).get_submodule(path).weight
            assert isinstance(weight, torch.Tensor) and weight.grad is not None
            columns = (weight.detach() * weight.grad).double().sum(0).cpu()
            unit = supernet.family.unit(axis, supernet.config)
            total = total + columns.view(-1, unit).sum(1).abs()
    return total


@torch.no_grad()
def _permute(supernet: Supernet, layer: int, axis: str, order: Sequence[int]) -> None:
    """Reorders the units of one axis in every weight of a layer that has it."""
    unit = supernet.family.unit(axis, supernet.config)  # type: ignore[arg-type]
    index = (torch.tensor(order)[:, None] * unit + torch.arange(unit)).reshape(-1)
    for name, parameter in supernet.layers.parent_layer(layer).named_parameters():
        path, _, kind = name.rpartition(".")
        axes = supernet.family.modules.get(path, ())
        for dim, here in enumerate(axes if kind == "weight" else axes[:1]):
            if here == axis:
                parameter.copy_(parameter.index_select(dim, index.to(parameter.device)))


def _to(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}

"""Order of layers: which are missed least, by the loss without them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nas.supernets.supernet import Supernet
from nas.tasks.evaluation import evaluation_mode, on_model
from nas.tasks.types import TaskType
from search_spaces import InputError, SubnetConfig
from search_spaces.dimensions import PER_LAYER

Batch = Mapping[str, torch.Tensor]


def layer_order(
    supernet: Supernet, batches: Sequence[Batch], task: TaskType | None = None, fewest: Sequence[int] = ()
) -> tuple[int, ...]:
    """Orders layers by greedy elimination: repeatedly drops the layer whose removal raises the loss least.

    Each layer is tried once with all others. From then on only the most promising one is tried again, as a layer is
    rarely missed less where others are missing (lazy greedy, Minoux 1978), until 2 L passes over the batches are made;
    the rest follows the last losses.

    Args:
        supernet: The parent is active afterwards.
        batches: Labelled, a few hundred examples.
        task: Computes the loss of a model; default: the model does.
        fewest: Layers of each stack that no subnetwork drops, as many as stay are in their own order; default: one.

    Returns:
        Parent layers, most important first: a subnetwork of depth d keeps the first d. The layers of an encoder and of
        its decoder are mixed in one order.
    """
    if supernet.family.shared_layers:
        return supernet.parent.layers
    elimination = _Elimination(supernet, batches, task, fewest or [1] * len(supernet.stacks))
    dropped = elimination.dropped()
    supernet.activate(supernet.parent)
    return (*(layer for layer in supernet.parent.layers if layer not in dropped), *reversed(dropped))


class _Elimination:
    """Drops layers one by one.

    Attributes:
        remaining: The subnetwork without them.
        increases: Layer -> by how much the loss rose when it was last tried, and how many were dropped by then.
    """

    def __init__(
        self, supernet: Supernet, batches: Sequence[Batch], task: TaskType | None, fewest: Sequence[int]
    ) -> None:
        self.remaining, self.increases = supernet.parent, dict[int, tuple[float, int]]()
        self._supernet, self._fewest, self._passes = supernet, fewest, 2 * len(supernet.parent.layers)
        self._loss_of = lambda subnet: mean_loss(supernet, subnet, batches, task)

    def _candidates(self) -> list[int]:
        """Layers of the stacks that may lose another one."""
        stacks = self._supernet.layout.kept_positions(self.remaining)
        deep = [kept for kept, fewest in zip(stacks, self._fewest, strict=True) if len(kept) > fewest]
        return [self.remaining.layers[position] for positions in deep for position in positions]

    def dropped(self) -> list[int]:
        """The layers, the first dropped first."""
        dropped: list[int] = []
        loss = self._loss_of(self.remaining) if self._candidates() else 0.0
        while candidates := self._candidates():
            layer = self._least(candidates, loss, len(dropped))
            loss += self.increases[layer][0]
            self.remaining = drop_layer(self.remaining, layer)
            dropped.append(layer)
        return dropped

    def _least(self, candidates: Sequence[int], loss: float, round_number: int) -> int:
        """The layer that is missed least; the loss is that of the remaining ones."""
        for layer in candidates:
            if layer not in self.increases:
                self._try(layer, loss, round_number)
        while True:
            least = min(candidates, key=lambda layer: (self.increases[layer][0], -layer))
            if self.increases[least][1] == round_number or self._passes <= 0:
                return least
            self._try(least, loss, round_number)

    def _try(self, layer: int, loss: float, round_number: int) -> None:
        self._passes -= 1
        self.increases[layer] = self._loss_of(drop_layer(self.remaining, layer)) - loss, round_number


def mean_loss(
    supernet: Supernet, subnet: SubnetConfig, batches: Sequence[Batch], task: TaskType | None = None
) -> float:
    """Returns the mean loss of a subnetwork over labelled batches; the subnetwork stays active."""
    supernet.activate(subnet)
    model = supernet.model
    with evaluation_mode(model, in_float32=task is None or not task.has_vocabulary_logits):
        losses = [forward(model, on_model(batch, model), task).loss.item() for batch in batches]
    mean = sum(losses) / len(losses)
    require_finite(math.isfinite(mean), "losses on which layers are ordered")
    return mean


def forward(model: Any, batch: Batch, task: TaskType | None) -> Any:
    """Runs a model on a labelled batch; returns its outputs with the loss."""
    return model(**batch) if task is None else task.forward(model, batch)


def drop_layer(subnet: SubnetConfig, layer: int) -> SubnetConfig:
    """Returns the subnetwork without one of its layers."""
    position = subnet.layers.index(layer)

    def without(values: tuple[int, ...]) -> tuple[int, ...]:
        return values[:position] + values[position + 1 :]

    fields: dict[str, Any] = {field: without(getattr(subnet, field)) for field in ("layers", *PER_LAYER)}
    return subnet.with_values(**fields)


def require_finite(is_finite: bool, what: str) -> None:
    """Raises InputError with what is not finite."""
    if not is_finite:
        raise InputError(
            f"the {what} must be finite, but one is not; check the parent's weights, and that every batch has labels."
        )

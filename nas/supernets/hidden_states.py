"""Hidden states after each layer: recorded in a student and its teacher, and compared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nas.tasks.batches import IGNORE_INDEX
from nas.tasks.kept_outputs import KeptStates
from search_spaces import Layout, SubnetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HiddenStates = dict[int, list[torch.Tensor]]
"""Parent layer -> for each example of a batch the states (tokens, channels) of its tokens that are no padding."""


@dataclass(frozen=True)
class StateMatching:
    """That the hidden states of students should be those of their teacher, for the trainings of a stage.

    Attributes:
        weight: Of the loss on the states, see `hidden_state_loss`.
        layout: The layout of the parent, which is the teacher.
        subnets: The students.
        kept: Keeps the teacher's states on training examples; None if these change.
    """

    weight: float
    layout: Layout
    subnets: Sequence[SubnetConfig]
    kept: KeptStates | None = None

    @property
    def targets(self) -> set[int]:
        """Layers of the teacher that students are compared with."""
        return {target for subnet in self.subnets for target in target_layers(self.layout, subnet.layers).values()}


class HiddenStateRecorder:
    """Records the states after each layer while a model runs, under the parent's numbers of the layers.

    Args:
        model: A supernet's model with the parent active, an extracted subnetwork, or the teacher.
        layout: The layout of the parent.
        layers: The parent's layers that the model has; default: all.
        recorded: Those whose states are recorded; default: all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layout: Layout,
        layers: Sequence[int] | None = None,
        recorded: Collection[int] | None = None,
    ) -> None:
        self.layout = layout
        self._layers = layout.parent.layers if layers is None else layers
        self._recorded = self._layers if recorded is None else recorded
        self._states: dict[int, torch.Tensor] | None = None
        self._n_entered = 0
        children = [
            layer
            for stack in layout.family.stacks
            for layer in model.base_model.get_submodule(stack.layers).children()
        ]
        for position, layer in enumerate(children):
            self._add_hook(layer, position)

    def run(self, forward: Callable[[], Any], inputs: Mapping[str, torch.Tensor]) -> tuple[Any, HiddenStates]:
        """Returns what ``forward`` returns, which runs the model on the inputs, and the states of their tokens."""
        with self._recording() as states:
            outputs = forward()
        masks = [attention_mask_of(inputs, stack) for stack in range(len(self.layout.family.stacks))]
        return outputs, {
            layer: real_tokens(each, masks[self.layout.stack_of(layer)[0]]) for layer, each in states.items()
        }

    @contextmanager
    def _recording(self) -> Iterator[dict[int, torch.Tensor]]:
        """Enables the hooks until exit only: activation checkpointing runs the layers again in the backward pass."""
        self._states, self._n_entered = {}, 0
        try:
            yield self._states
        finally:
            self._states = None

    def _add_hook(self, layer: torch.nn.Module, position: int) -> None:
        def leave(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._states is not None:
                number = self._layers[self._n_entered if self.layout.family.shared_layers else position]
                self._n_entered += 1
                if number in self._recorded:
                    self._states[number] = output[0] if isinstance(output, tuple) else output

        layer.register_forward_hook(leave)


def attention_mask_of(inputs: Mapping[str, torch.Tensor], stack: int) -> torch.Tensor | None:
    """Returns the mask of real tokens of a stack (examples, tokens); in a decoder, of the tokens with labels."""
    return inputs.get("attention_mask") if stack == 0 else inputs["labels"] != IGNORE_INDEX


def real_tokens(states: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
    """Returns for each example the states (tokens, channels) of tokens that are no padding.

    Args:
        states: (examples, ..., channels).
        mask: (examples, tokens), 0 for padding; ignored if it has another shape.
    """
    if mask is None or mask.shape != states.shape[:2]:
        return list(states.flatten(1, -2).unbind())
    return list(states[mask.bool()].split(mask.bool().sum(1).tolist()))


def target_layers(layout: Layout, layers: Sequence[int]) -> dict[int, int]:
    """Returns for each layer that a subnetwork kept the layer of the parent whose states its own should be.

    That is the same layer, and for the last of a stack the parent's last.
    """
    targets = {layer: layer for layer in layers}
    for stack in range(len(layout.family.stacks)):
        own = [layer for layer in layers if layout.stack_of(layer)[0] == stack]
        targets[max(own)] = max(layer for layer in layout.parent.layers if layout.stack_of(layer)[0] == stack)
    return targets


def hidden_state_loss(student: HiddenStates, teacher: HiddenStates, layout: Layout) -> torch.Tensor:
    """Mean squared difference of hidden states relative to their variance, mean over the layers of a subnetwork.

    As in patient knowledge distillation (Sun et al. 2019, arXiv 1908.09355) and DynaBERT (Hou et al. 2020, arXiv
    2004.04037), each layer learns from one of the teacher, see `target_layers`. A student with fewer channels is
    compared with the first of the teacher's, so both must have them in the same order.

    Args:
        student: States of the layers that a subnetwork kept.
        teacher: States of the layers that they are compared with.
        layout: The layout of the parent.
    """
    losses = []
    for layer, target in target_layers(layout, sorted(student)).items():
        own = torch.cat(student[layer]).float()
        wanted = torch.cat(teacher[target])[:, : own.shape[1]].to(own)
        losses.append((own - wanted).square().mean() / wanted.var(0, correction=0).mean().clamp_min(1e-12))
    return torch.stack(losses).mean()

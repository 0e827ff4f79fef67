"""Relation distillation: compares how tokens relate in a layer, for models of different widths (MiniLMv2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F

from nas.tasks.batches import IGNORE_INDEX
from search_spaces import Layout, SubnetConfig
from search_spaces.family import Axis

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RelationSource = Literal["last", "hidden", "attention"]
"""The last hidden states, the hidden states after every layer, or the queries, keys and values of every layer."""

HiddenStates = dict[tuple[int, str], torch.Tensor]
"""(Parent layer, name of the states) -> states (examples, tokens, channels)."""

PROJECTION_AXES: tuple[Axis, ...] = ("heads", "kv_heads", "qkv_heads")
"""Axes of the outputs of the modules that project a layer's own tokens to queries, keys and values."""


class HiddenStateRecorder:
    """Runs a model and records the states whose relations are distilled.

    States are stored under the parent's layer indices, so that each layer of a subnetwork matches one of the teacher.

    Args:
        model: The supernet's model with the parent active, or the teacher.
        layout: The layout of the parent.
        source: The states to record; queries and keys are recorded before rotary embeddings are applied.
    """

    def __init__(self, model: PreTrainedModel, layout: Layout, source: RelationSource) -> None:
        self.layout, self.source = layout, source
        self._subnet: SubnetConfig | None = None
        self._states: HiddenStates = {}
        self._entered_layers: list[tuple[int, torch.Size]] = []
        if source != "last":
            self._add_hooks(model)

    def run(self, model: Any, inputs: Mapping[str, torch.Tensor], subnet: SubnetConfig) -> tuple[Any, HiddenStates]:
        """Runs a model of which ``subnet`` is active; returns its outputs and states."""
        if self.source == "last":
            outputs = model(**inputs, output_hidden_states=True)
            states = getattr(outputs, "decoder_hidden_states", None) or outputs.hidden_states
            return outputs, {(self.layout.parent.layers[-1], "last"): states[-1]}
        with self._recording(subnet):
            return model(**inputs), self._states

    @contextmanager
    def _recording(self, subnet: SubnetConfig) -> Iterator[None]:
        """Enables the hooks until exit only: activation checkpointing runs the layers again in the backward pass."""
        self._subnet, self._states, self._entered_layers = subnet, {}, []
        try:
            yield
        finally:
            self._subnet = None

    def _add_hooks(self, model: PreTrainedModel) -> None:
        number = 0
        for stack in self.layout.family.stacks:
            for layer in model.base_model.get_submodule(stack.layers).children():
                self._add_layer_hooks(layer, number, stack.modules)
                number += 1

    def _add_layer_hooks(self, layer: torch.nn.Module, number: int, modules_of_stack: Mapping[str, Any]) -> None:
        def enter(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._subnet is not None:
                hidden = args[0] if args else kwargs["hidden_states"]
                index = len(self._entered_layers) if self.layout.family.shared_layers else number
                self._entered_layers.append((index, hidden.shape[:2]))

        def leave(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._subnet is not None:
                self._store("hidden", output[0] if isinstance(output, tuple) else output)

        layer.register_forward_pre_hook(enter, with_kwargs=True)
        if self.source == "hidden":
            layer.register_forward_hook(leave)
            return
        modules = dict(layer.named_modules())
        for path, axes in modules_of_stack.items():
            output_axes = axes[0] if isinstance(axes[0], tuple) else axes[:1]
            if path in modules and len(axes) == 2 and set(output_axes) <= set(PROJECTION_AXES):
                self._add_projection_hook(modules[path], path, output_axes)

    def _add_projection_hook(self, module: torch.nn.Module, path: str, output_axes: tuple[Axis, ...]) -> None:
        def leave(module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            if self._subnet is not None and output.shape[:2] == self._entered_layers[-1][1]:
                for number, projection in enumerate(self._split_projection(output, output_axes)):
                    self._store(f"{path}.{number}", projection)

        module.register_forward_hook(leave)

    def _store(self, what: str, states: torch.Tensor) -> None:
        """Stores the first states of a name: DeBERTa projects relative positions with the same weights afterwards."""
        self._states.setdefault((self._entered_layers[-1][0], what), states)

    def _split_projection(self, output: torch.Tensor, output_axes: tuple[Axis, ...]) -> list[torch.Tensor]:
        """Splits the output of a fused projection into queries, keys and values."""
        if output_axes == ("qkv_heads",):
            by_head = output.unflatten(-1, (-1, 3, self.layout.head_dim))
            return [projection.flatten(-2) for projection in by_head.unbind(-2)]
        assert self._subnet is not None
        position = self._subnet.layers.index(self._entered_layers[-1][0])
        sizes = self.layout.blueprint(self._subnet).layers[position].sizes
        return list(output.split([self.layout.shapes.size(part, sizes) for part in output_axes], -1))


def detach_states(states: HiddenStates) -> HiddenStates:
    """Detaches the states from the graph."""
    return {key: each.detach() for key, each in states.items()}


def relation_loss(
    student: HiddenStates, teacher: HiddenStates, inputs: Mapping[str, torch.Tensor], layout: Layout
) -> torch.Tensor:
    """Mean of `relation_divergence` over the recorded states of the student, each with those of the same layer."""
    losses = []
    for (layer, kind), student_states in student.items():
        teacher_states, stack = teacher[layer, kind], layout.stack_of(layer)[0]
        heads = (
            1 if kind == "last" else relation_heads(student_states, teacher_states, layout.full_sizes[stack]["heads"])
        )
        losses.append(relation_divergence(student_states, teacher_states, attention_mask_of(inputs, stack), heads))
    return torch.stack(losses).mean() if losses else next(iter(teacher.values())).new_zeros(())


def attention_mask_of(inputs: Mapping[str, torch.Tensor], stack: int) -> torch.Tensor | None:
    """Returns the mask of real tokens of a stack (examples, tokens); in a decoder, of the tokens with labels."""
    return inputs.get("attention_mask") if stack == 0 else inputs["labels"] != IGNORE_INDEX


def relation_heads(student: torch.Tensor, teacher: torch.Tensor, max_heads: int) -> int:
    """Returns the largest number of heads, at most ``max_heads``, that divides the channels of both models."""
    common = math.gcd(student.shape[-1], teacher.shape[-1])
    return next(heads for heads in range(max_heads, 0, -1) if common % heads == 0)


def relation_divergence(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, heads: int = 1
) -> torch.Tensor:
    """Returns the divergence between the token relations of two models of any widths.

    The relations of a token are the softmax of its scaled dot products with all tokens. The loss is KL(teacher ||
    student), mean over tokens and relation heads (MiniLMv2, Wang et al. 2021, arXiv 2012.15828). Relation heads are
    equally many slices of the channels of both models.

    Args:
        student: States (examples, tokens, channels).
        teacher: States of the teacher, with any number of channels.
        mask: (examples, tokens), 0 for padding; ignored if it has another shape.
        heads: Number of relation heads; it divides both numbers of channels.
    """
    if mask is None or mask.shape != student.shape[:2]:
        mask = student.new_ones(student.shape[:2])
    is_real = mask.bool()
    student_relations, teacher_relations = (
        _relations(states.float(), is_real, heads)[is_real] for states in (student, teacher)
    )
    return (teacher_relations.exp() * (teacher_relations - student_relations)).nan_to_num(0.0).sum(-1).mean()


def _relations(states: torch.Tensor, is_real: torch.Tensor, heads: int) -> torch.Tensor:
    """Returns log relations (examples, tokens, heads, tokens); relations to padding are -inf."""
    heads_first = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = heads_first @ heads_first.transpose(-1, -2) / heads_first.shape[-1] ** 0.5
    return F.log_softmax(scores.masked_fill(~is_real[:, None, None, :], -torch.inf), -1).transpose(1, 2)

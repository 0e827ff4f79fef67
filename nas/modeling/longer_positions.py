"""Longer inputs than a model was pretrained for: its learned position embeddings are copied over and over.

Beltagy et al. 2020 (Longformer, arXiv 2004.05150) begin in the same way; their ablation has copies far ahead of new
random positions.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from search_spaces import FAMILIES, Layout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def extend_config(config: PreTrainedConfig, tokens: int) -> PreTrainedConfig:
    """The config of a model that reads so many tokens, if only learned positions stand against it."""
    family = FAMILIES.get(config.model_type)
    if family is None or not family.learned_positions:
        return config
    limit = Layout(config).inputs.max_sequence_length
    if limit is None or limit >= tokens:
        return config
    extended = copy.deepcopy(config)
    extended.max_position_embeddings += tokens - limit
    return extended


def extend_positions(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """The same model with the positions of a longer config: what it computes of shorter texts stays as it is."""
    if num_positions(model.config) == num_positions(config):
        return model
    layout, extended_config = Layout(model.config), copy.deepcopy(model.config)
    extended_config.max_position_embeddings = config.max_position_embeddings
    with torch.random.fork_rng(devices=[]):
        extended = type(model)(extended_config)
    state, shapes = model.state_dict(), extended.state_dict()
    for name, weight in state.items():
        if name.endswith(f"{layout.family.learned_positions}.weight"):
            state[name] = _repeat_rows(
                weight, len(shapes[name]), len(weight) - (layout.inputs.max_sequence_length or 0)
            )
    extended.load_state_dict(state)
    extended.tie_weights()
    if model.can_generate():
        extended.generation_config = copy.deepcopy(model.generation_config)
    return extended.train(model.training)


def num_positions(config: PreTrainedConfig) -> int | None:
    """Position embeddings that a config asks for, None where it does not say."""
    return getattr(config, "max_position_embeddings", None)


def _repeat_rows(weight: torch.Tensor, rows: int, unused: int) -> torch.Tensor:
    """So many rows: those that no token uses, then the others as often as they fit."""
    used = weight[unused:]
    repeated = used.repeat(-(-(rows - unused) // len(used)), 1)[: rows - unused]
    return torch.cat([weight[:unused], repeated])

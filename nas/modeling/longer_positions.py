"""Extends learned position embeddings by repeating them, for inputs longer than a model was pretrained for.

Longformer is initialized in the same way (Beltagy et al. 2020, arXiv 2004.05150); in its ablation, repeated positions
are far better than new random ones.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from nas.modeling.known_layouts import adopt
from search_spaces import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def extend_config(config: PreTrainedConfig, tokens: int) -> PreTrainedConfig:
    """Returns a config with positions for this many tokens; unchanged if it has them, or no learned positions."""
    family = adopt(config.model_type)
    if family is None or not family.learned_positions:
        return config
    limit = Layout(config).inputs.max_sequence_length
    if limit is None or limit >= tokens:
        return config
    extended = copy.deepcopy(config)
    extended.max_position_embeddings += tokens - limit
    return extended


def extend_positions(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Returns the model with as many positions as the config has; outputs for shorter inputs do not change."""
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
    """Returns the number of position embeddings in a config; None if it has none."""
    return getattr(config, "max_position_embeddings", None)


def _repeat_rows(weight: torch.Tensor, rows: int, unused: int) -> torch.Tensor:
    """Returns this many rows: the unused first rows, then the used ones repeated."""
    used = weight[unused:]
    repeated = used.repeat(-(-(rows - unused) // len(used)), 1)[: rows - unused]
    return torch.cat([weight[:unused], repeated])

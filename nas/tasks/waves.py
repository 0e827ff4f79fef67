"""Waves and spectrograms as inputs of a model: padded batches, random ones, and what their trainings need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from search_spaces.inputs import convolved

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedConfig

    from predictors import Workload


def padded(extractor: Any, sounds: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Pads inputs of a feature extractor, with a mask where its model takes one."""
    name = extractor.model_input_names[0]
    batch = extractor.pad([{name: sound} for sound in sounds], padding=True, return_tensors="pt")
    return {key: value for key, value in batch.items() if key == name or extractor.return_attention_mask}


def random_sounds(config: PreTrainedConfig, workload: Workload, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random waves of as many frames as the workload has tokens; of a model of spectrograms, random ones."""
    import torch

    if hasattr(config, "max_source_positions"):
        spectrograms = (workload.batch_size, config.num_mel_bins, 2 * config.max_source_positions)
        return {"input_features": torch.randn(spectrograms, generator=generator)}
    if hasattr(config, "frequency_stride"):
        shape: tuple[int, ...] = (config.max_length, config.num_mel_bins)
    else:
        assert workload.sequence_length is not None
        shape = (convolved(config, workload.sequence_length)[0],)
    return {"input_values": torch.randn((workload.batch_size, *shape), generator=generator)}


def configure_waves(config: PreTrainedConfig) -> None:
    """Keeps every layer in training: which layers run is what subnetworks choose."""
    if hasattr(config, "layerdrop"):
        config.layerdrop = 0.0

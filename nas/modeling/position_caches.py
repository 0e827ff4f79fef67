"""What some models compute once for all models of a process: indices of relative positions, as in BEiT.

Tensors that are made in inference mode cannot be saved for a backward pass, and these would be made by whoever runs
such a model first.
"""

from __future__ import annotations

import torch
from torch import nn


def fill_position_caches(model: nn.Module) -> None:
    """Computes the indices of relative positions of a model outside of inference mode."""
    with torch.inference_mode(False):
        for module in model.modules():
            if hasattr(module, "generate_relative_position_index"):
                module.generate_relative_position_index(module.window_size)

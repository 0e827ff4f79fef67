"""What some models compute once for all models of a process: indices of relative positions, as in BEiT.

Tensors that are made in inference mode cannot be saved for a backward pass, and these would be made by whoever runs
such a model first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def fill_position_caches(model: nn.Module) -> None:
    """Computes the indices of relative positions of a model outside of inference mode."""
    with torch.inference_mode(False):
        for module in model.modules():
            generate: Any = getattr(module, "generate_relative_position_index", None)
            if generate is not None:
                generate(module.window_size)

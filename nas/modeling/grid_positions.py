"""Learned positions of an image's patches for another size of the image: a bicubic interpolation of their grid.

transformers interpolates alike for images of another size than the config's. The interpolation is linear in the
positions, so it is a matrix.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional


def interpolation(special: int, old: int, new: int) -> np.ndarray:
    """Weights (special + new patches, special + old patches) of the positions of one grid in those of another.

    Args:
        special: First positions, of special tokens, which stay.
        old: Patches of the parent.
        new: Patches of the smaller image.
    """
    side, wanted = round(old**0.5), round(new**0.5)
    grids = torch.eye(old).view(old, 1, side, side)
    resized = functional.interpolate(grids, size=(wanted, wanted), mode="bicubic", align_corners=False)
    return torch.block_diag(torch.eye(special), resized.view(old, new).T).numpy()

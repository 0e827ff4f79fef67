"""Smaller images in a supernet: learned positions of their grid of patches, and modules that check their size.

Positions are interpolated bicubically, as transformers does for images of another size than the config's. That is
linear in the positions, so it is a matrix.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def interpolation(special: int, old: int, new: int, queries: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Weights (new positions, old positions) of the positions of one grid in those of another.

    Positions are those of special tokens, of patches and of queries.

    Args:
        special: First positions, of special tokens, which stay.
        old: Patches of the parent.
        new: Patches of the smaller image.
        queries: Last positions, of queries: how many there are, and the number of the first ones that stay.
    """
    side, wanted = round(old**0.5), round(new**0.5)
    grids = torch.eye(old).view(old, 1, side, side)
    resized = functional.interpolate(grids, size=(wanted, wanted), mode="bicubic", align_corners=False)
    first = torch.eye(*queries).T
    return torch.block_diag(torch.eye(special), resized.view(old, new).T, first).numpy()


class SizeChecks:
    """The modules of a model that compare images with the size in its config."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {each: vars(each)["image_size"] for each in model.modules() if "image_size" in vars(each)}

    def expect(self, side: int) -> None:
        """Lets them expect images with a side of so many pixels; 0: of their own size."""
        for module, own in self._own.items():
            smaller = side if isinstance(own, int) else (side, side)
            module.__dict__["image_size"] = smaller if side else own

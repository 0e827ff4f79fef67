"""SigLIP 2 for images of any size (Tschannen et al. 2025, arXiv 2502.14786): SigLIP's towers over patches already cut.

Its image processor keeps the shape of an image and cuts it into at most ``num_patches``; a mask tells the rest. The
positions are interpolated to the shape of each image. SigLIP 2 of one image size is a `siglip`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from search_spaces.families.siglip import SIGLIP, TOWERS

if TYPE_CHECKING:
    from search_spaces.family import Axes, Family


def of_cut_patches(family: Family) -> Family:
    """A table of SigLIP for the same layers over as many patches of any image."""
    positions: dict[str, Axes] = {"vision_model.embeddings.position_embedding": (None, "hidden")}
    why = {"image_size": "each image has a shape of its own"}
    return replace(
        family,
        model_type="siglip2",
        outside_layers={**family.outside_layers, **positions},
        fixed_reasons={**family.fixed_reasons, **why},
        cuts_patches=True,
    )


SIGLIP2 = replace(of_cut_patches(SIGLIP), of_task=dict.fromkeys(TOWERS.tasks, of_cut_patches(TOWERS)))
